# The privacy report of the hospital $1, for people and for programs.
set -eu
waited_s=0
while fedplat client budget show --json | grep -q '"is_open": true'; do # it closes its books when the server tells it
    [ $waited_s -lt 30 ] || { echo "a run is still open in the ledger of $1" >&2; exit 1; }
    waited_s=$((waited_s + 1))
    sleep 1
done
for format in html json; do
    fedplat report privacy --dataset breast-cancer --output "/papers/$1.$format"
done
fedplat report verify "/papers/$1.json"
