#!/usr/bin/env bash
# Brings the compose demo up for real, breaks it while it trains, and checks what must hold; removes all of it at the end.
# Uses the engine that answers. Where none does and this is root on Debian, it installs one and runs it privately, with
# images made on this machine; elsewhere it says that it skips.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/engine.sh
begun=$(date +%s%N) passed=0 failed=0 own= background=()
work=$(mktemp -d /tmp/fpdXXXX)
project=fedplat-test-$$
hospitals=(riverside st-anna northfield lakeview)
export FEDPLAT_TAG=$project FEDPLAT_ROUNDS=24

say() { awk -v ns=$(($(date +%s%N) - begun)) -v text="$*" 'BEGIN {printf "%6.1f s  %s\n", ns / 1e9, text}'; }
check() { # WHAT COMMAND...
    local said
    if said=$("${@:2}" 2>&1); then passed=$((passed + 1)) && say "ok: $1"; else
        failed=$((failed + 1)) && say "FAILED: $1"
        tail -n 5 <<<"$said"
    fi
}
within() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    until "${@:2}"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.5
    done
}
compose() { "${compose[@]}" --project-name "$project" --file docker/compose.yaml "$@"; }
mine() { docker "$1" ls "${@:2}" --quiet --filter label=com.docker.compose.project="$project"; }
container() { mine container --all --filter label=com.docker.compose.service="$1"; }
on() { docker exec -i "$(container "$1")" "${@:2}"; }
inspect() { docker inspect --format "$2" "$(container "$1")"; }

cleanup() {
    local status=$?
    set +e
    [ "$status" = 0 ] || tail -n 20 "$work"/*.log
    if [ -n "${compose[*]-}" ]; then
        compose down --volumes --timeout 3 >"$work/down.log" 2>&1
        check "nothing is left of it" test -z "$(mine container --all; mine volume; mine network)"
        [ -n "$own" ] || docker image rm "fedplat-server:$FEDPLAT_TAG" "fedplat-silo:$FEDPLAT_TAG" >/dev/null
    fi
    [ ${#background[@]} = 0 ] || kill "${background[@]}" 2>/dev/null
    stop_engine "$work"
    check "nothing is left of the engine" test ! -e "$work"
    say "cleaned up"
    echo "$passed passed, $failed failed"
    if [ "$status" = 0 ] && [ "$failed" = 0 ]; then exit 0; else exit 1; fi
}

# ---- engine and images --------------------------------------------------------------------------------------------

build() { # FILE TAG
    docker build --quiet ${own:+--network host --build-arg PYTHON_IMAGE=fedplat-test-python} "${wheels[@]}" \
        --tag "$2:$FEDPLAT_TAG" --file "docker/$1.Dockerfile" . >"$work/$1.log" 2>&1
}

prepare_offline() {
    start_engine "$work"
    say "an engine of our own: $(docker version --format '{{.Server.Version}}')"
    python3 -m pip wheel --quiet --wheel-dir "$work/wheels" --constraint constraints.txt '.[silo]' hatchling &
    local pip=$!
    make_python_image "$work/python" fedplat-test-python
    make_postgres_image "$work/postgres" fedplat-test-postgres fedplat-test-python
    export FEDPLAT_POSTGRES_IMAGE=fedplat-test-postgres
    wait $pip
    say "base images and wheels"
    local port
    port=$(free_port)
    python3 -m http.server --bind 127.0.0.1 --directory "$work/wheels" "$port" >/dev/null 2>&1 &
    background+=($!)
    wheels=(--build-arg PIP_NO_INDEX=1 --build-arg "PIP_FIND_LINKS=http://127.0.0.1:$port/")
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

if ! docker info >/dev/null 2>&1 && { [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; }; then
    rm -r "$work"
    echo "no container engine answers, and none can be installed (not root on Debian): SKIPPED"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
trap cleanup EXIT
wheels=()
if docker info >/dev/null 2>&1; then say "an engine answers"; else
    own=1
    prepare_offline 2>"$work/prepare.log"
fi
if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
build server fedplat-server
say "server image"
build silo fedplat-silo
say "silo image"

# ---- the play -----------------------------------------------------------------------------------------------------

size_mb() { echo $(($(docker image inspect --format '{{.Size}}' "$1:$FEDPLAT_TAG") / 1000000)); }
run_id() { on server fedplat run list --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[-1]["id"])'; }
holds() { python3 -c "import json, sys; r = json.load(sys.stdin); sys.exit(not ($1))" <"$work/run.json"; }
# What the container that follows the run has printed, which costs next to nothing: a line a round, anew after a restart.
lines() { docker logs "$(container run)" 2>&1 | grep -E '^round +[0-9]+ '; }
rounds() { lines | awk '$2 > most {most = $2} END {print most + 0}'; }
past() { [ "$(rounds)" -ge "$1" ]; }
ended() { [ "$(inspect "$1" '{{.State.Status}}')" = exited ]; }
well_ended() { ended "$1" && [ "$(inspect "$1" '{{.State.ExitCode}}')" = 0 ]; }

say "server image $(size_mb fedplat-server) MB, silo image $(size_mb fedplat-silo) MB"
check "the server image is below 400 MB" test "$(size_mb fedplat-server)" -lt 400
FEDPLAT_PORT=$(free_port)
export FEDPLAT_PORT
compose up --no-build >"$work/up.log" 2>&1 &
background+=($!)
within 240 run_id >/dev/null 2>&1
run=$(run_id)
say "$("${compose[@]}" version --short): up, run $run"
check "rounds are committed" within 120 past 2

docker kill "$(container lakeview)" >/dev/null
left_out() { lines | grep -q 'without lakeview'; }
returned() { lines | tail -n 1 | grep -q ' 4 silos'; }
check "without lakeview, which was killed, a round goes on" within 60 left_out
docker start "$(container lakeview)" >/dev/null
check "lakeview comes back into a round" within 90 returned

before=$(rounds)
docker restart --time 5 "$(container server)" >/dev/null
check "the server was restarted, and the run goes on" within 90 past $((before + 2))

before=$(rounds)
docker stop --time 5 "$(container database)" >/dev/null
sleep 4
docker start "$(container database)" >/dev/null
check "the database was away, and the run goes on" within 90 past $((before + 2))
check "the run ends well, with all its rounds" within 180 well_ended run
check "which compose has shown" grep -q "round *$FEDPLAT_ROUNDS .* accuracy" "$work/up.log"
lines | tail -n 1

# ---- what must hold ---------------------------------------------------------------------------------------------------

on server fedplat run show "$run" --json >"$work/run.json"
all_rounds() { holds "r['state'] == 'finished' and len([x for x in r['rounds'] if x['state'] == 'committed']) == $FEDPLAT_ROUNDS"; }
masked() { holds 'all(s["num_confirmed"] == len(s["silos"]) - 1 for s in r["secure_steps"] if s["cohort"]) and len(r["secure_steps"]) > 0'; }
charged() { holds 'len(r["ledgers"]) == 4 and all(0 < one["epsilon"] <= one["budget"] == 8 for one in r["ledgers"])'; }
check "the server's books say so" all_rounds
check "every sum was masked, among hospitals that had confirmed each other" masked
check "each hospital's ledger charged it, within its budget" charged

written() { on "$1" test -e "/papers/$run/$1.json"; }
verified() { on "$1" sh -c "fedplat report verify /papers/$run/$2.json --fingerprint \"\$(cat /papers/$2.fingerprint)\""; }
forged() { on "$1" sh -c "sed 's/$2/someone/' /papers/$run/$2.json >/tmp/forged.json; ! fedplat report verify /tmp/forged.json 2>/tmp/why && grep -i sign /tmp/why"; }
known() { on "$1" fedplat report verify "/papers/$run/federation.html" --json | grep -q '"key_is_known": true'; }
for name in "${hospitals[@]}"; do
    check "the report of $name is written" within 60 written "$name"
done
check "its signature is verified by another hospital" verified st-anna riverside
check "and a changed report is refused" forged st-anna riverside
check "the federation's report bears the signature of the server that a hospital knows" known st-anna

ids() { on "$1" sh -c 'grep -h "^Uid:" /proc/[0-9]*/status' | awk '{print $2, $3, $4, $5}' | tr ' ' '\n' | sort -u; }
non_root() { ! ids "$1" | grep -qx 0; }
read_only() { [ "$(inspect "$1" '{{.HostConfig.ReadonlyRootfs}}')" = true ] && ! on "$1" touch /opt/file /etc/file /file; }
for name in server database "${hospitals[@]}"; do
    check "$name runs without root" non_root "$name"
    check "$name cannot write to its image" read_only "$name"
done

# Addresses of listening sockets, from the kernel: not those on loopback, nor Docker's own resolver.
listens() { on "$1" cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == "0A" && $2 !~ /^(0B|01)00007F:|^0{24}01000000:/ {split($2, at, ":"); print at[2]}' | sort -u | while read -r hex; do echo $((16#$hex)); done; }
address() { inspect "$1" '{{range .NetworkSettings.Networks}}{{println .IPAddress}}{{end}}' | grep . | head -n 1; }
open_from() { on "$1" python - "$2" "${3:-1}" "${4:-65535}" <docker/ports.py; }
is() { [ "$("${@:2}")" = "$1" ] || { echo "not $1: $("${@:2}")" && false; }; }
published() { docker ps --filter label=com.docker.compose.project="$project" --format '{{.Ports}}' | tr , '\n' | grep -e '->' | tr -d ' '; }
check "the server listens on its port" is 8443 listens server
check "the database listens on its port" is 5432 listens database
check "one port is published, on loopback" is "127.0.0.1:$FEDPLAT_PORT->8443/tcp" published
check "from a hospital, of the server's ports one answers" is 8443 open_from riverside server
check "from the server, none of a hospital's answers" is "" open_from server riverside
for name in database st-anna northfield lakeview; do
    check "riverside does not reach $name" is "out of reach" open_from riverside "$(address "$name")" 5432 5432
done
for name in "${hospitals[@]}"; do
    check "$name listens on no port" is "" listens "$name"
done
check "riverside does not reach the world" is "out of reach" open_from riverside 1.1.1.1 443 443

secrets() { on database cat /run/secrets/password; echo; for name in "${hospitals[@]}"; do on "$name" cat /handover/invite; done; }
told() { mine container --all | while read -r id; do docker inspect "$id" && docker logs "$id"; done 2>&1; docker history --no-trunc "fedplat-server:$FEDPLAT_TAG"; }
silent() { secrets >"$work/secrets" && [ "$(grep -c . "$work/secrets")" = 5 ] && ! told | grep -qFf "$work/secrets"; }
check "no log, no environment and no command line tells a secret" silent
[ "$failed" = 0 ] || tail -n 60 "$work/up.log"
