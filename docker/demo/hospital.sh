# One hospital, from its first start on.
#   hospital.sh NAME [OPTION...]   with options for `fedplat client join`
#   hospital.sh check              whether it is connected, and has done what it does before its first run
set -eu
hospitals="riverside st-anna northfield lakeview"
dataset=breast-cancer

if [ "$1" = check ]; then
    [ -e "$FEDPLAT_HOME/introduced" ] && fedplat client status --json | grep -q '"connected": true'
    exit
fi
name=$1
shift
home=$FEDPLAT_HOME/silos/$name

# What its administrator and its privacy officer do by hand, once.
introduce() {
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
    fedplat client budget set --dataset "$dataset" --epsilon 8 --delta 1e-5
    touch "$FEDPLAT_HOME/introduced"
}

[ -e "/data/$name.csv" ] || python -m fedplat_silo.demo_data /data "$name"
[ -e "$FEDPLAT_HOME/introduced" ] || introduce &
exec fedplat client join --silo "$name" --invite @/handover/invite --data "$dataset=/data/$name.csv" "$@"
