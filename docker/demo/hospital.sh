# One hospital, from its first start on.
#   hospital.sh NAME [OPTION...]   with options for `fedplat client join`
#   hospital.sh check              whether it is connected, and has done what it does before its first run
set -eu
hospitals="riverside st-anna northfield lakeview"
dataset=breast-cancer
introduced=$FEDPLAT_HOME/introduced

if [ "$1" = check ]; then
    [ -e "$introduced" ] && grep -q '"connected":true' "$FEDPLAT_HOME"/silos/*/status.json
    exit
fi
name=$1
shift
home=$FEDPLAT_HOME/silos/$name

introduce() { # what its administrator and its privacy officer do by hand, once
    until [ -e "$home/identity/server.json" ]; do sleep 0.2; done
    fedplat client fingerprint | sed -n 's/^this silo: *//p' >"/papers/$name.new"
    mv "/papers/$name.new" "/papers/$name.fingerprint"
    for peer in $hospitals; do
        [ "$peer" != "$name" ] || continue
        until [ -e "/papers/$peer.fingerprint" ]; do sleep 0.2; done
        # shellcheck disable=SC2046  # it is written in groups
        fedplat client peers pin "$peer" $(cat "/papers/$peer.fingerprint")
    done
    sed -i -e 's/^require_secure_aggregation = .*/require_secure_aggregation = true/' \
        -e 's/^require_privacy = .*/require_privacy = true/' \
        -e 's/^min_pinned_cohort = .*/min_pinned_cohort = 3/' "$home/policy.toml"
    fedplat client budget set --dataset "$dataset" --epsilon 8 --delta 1e-5 --patient patient_id
    touch "$introduced"
}

report() { # what the run $1 can tell about a patient of this hospital, from its own book
    while fedplat client budget show --json | grep -q '"is_open": true'; do sleep 1; done # its ledger closes a moment later
    for format in html json; do
        fedplat report privacy --run "$1" --output "/papers/$1/$name.$format"
    done
}

paperwork() {
    [ -e "$introduced" ] || introduce
    while sleep 1; do
        for ended in /papers/*/ended; do
            run=$(basename "$(dirname "$ended")")
            [ ! -e "$ended" ] || [ -e "/papers/$run/$name.json" ] || report "$run"
        done
    done
}

[ -e "/data/$name.csv" ] || python -m fedplat_silo.demo_data /data "$name"
paperwork &
exec fedplat client join --silo "$name" --invite @/handover/invite --data "$dataset=/data/$name.csv" "$@"
