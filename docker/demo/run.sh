# Submits a run of $ROUNDS rounds, masked and with differential privacy, and follows it to its end.
set -eu
spec=/tmp/study.toml

change() { # KEY VALUE: in the first line of that key, which may be commented out
    grep -Eq "^(# )?$1 = " $spec || { echo "the spec has no key $1" >&2; exit 1; }
    sed -Ei "0,/^(# )?$1 = /s|^(# )?$1 = [^ ]*|$1 = $2|" $spec
}
state() { fedplat run show "$run" | sed -nE "1s/^run [^ ]+: (\w+).*/\1/p"; }

fedplat run init --task tabular >$spec
change count "$ROUNDS"
change timeout_s 12.0
change join_timeout_s 600.0
change patient '"patient_id"'
change weighting '"uniform"'
change epochs 2
change mode '"record"'
change metrics '"unprotected"'
change delta 1e-5
change epsilon 4.0
change expected_batch_size 32

submitted=$(fedplat run submit $spec)
echo "$submitted"
run=$(echo "$submitted" | sed -n '1s/^run \([^ ]*\).*/\1/p')
until fedplat run watch "$run"; do # it ends early when the server does
    until fedplat silo list >/dev/null 2>&1; do sleep 1; done
    case $(state) in failed | stopped) exit 1 ;; esac
done
fedplat run show "$run"
mkdir "/papers/$run"
touch "/papers/$run/ended" # the hospitals write their own reports
fedplat report privacy --run "$run" --output "/papers/$run/federation.html"
