# shellcheck shell=bash
# For test.sh, which sources it: where no engine answers, one of its own, and images to build on that no registry gave.

# Closed: no firewall rule, no forwarding, no default bridge; containers reach each other, and nothing outside.
start_engine() { # in FOLDER, whose path is short
    local folder=$1
    if ! command -v dockerd >/dev/null || ! command -v docker-compose >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update -qq && apt-get install -yqq --no-install-recommends docker.io docker-compose; } >"$folder/apt.log" 2>&1 ||
            { tail "$folder/apt.log"; return 1; }
    fi
    export DOCKER_HOST=unix://$folder/sock DOCKER_BUILDKIT=0
    setsid dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/pid" --host "$DOCKER_HOST" \
        --iptables=false --ip6tables=false --ip-forward=false --bridge=none \
        --default-address-pool base=172.31.0.0/16,size=24 >"$folder/dockerd.log" 2>&1 </dev/null &
    for _ in $(seq 100); do
        ! docker info >/dev/null 2>&1 || return 0
        sleep 0.2
    done
    tail "$folder/dockerd.log"
    return 1
}

stop_engine() { # in FOLDER; removes the folder, unless something is still mounted there
    local folder=$1 pid
    if pid=$(cat "$folder/pid" 2>/dev/null); then
        kill "$pid"
        for _ in $(seq 100); do
            [ -d "/proc/$pid" ] || break
            sleep 0.1
        done
    fi
    awk -v inside="$folder/" 'index($2, inside) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount
    rm -rf --one-file-system "$folder"
}

# What follows is made of this machine's own Debian files, for this machine alone: never publish it.

_pack() { # TAR: the files named on standard input, if they are there, with those of /bin and its like in /usr
    grep -vE '^/usr/share/(doc|man|locale|info|lintian)/|^/(dev|proc|run|sys|tmp)(/|$)' |
        sed -E 's,^/((bin|sbin|lib|lib32|lib64|libx32)/),/usr/\1,' | sort -u |
        while read -r path; do [ ! -e "$path" ] && [ ! -L "$path" ] || echo "${path#/}"; done |
        tar --create --file "$1" --directory / --no-recursion --verbatim-files-from --files-from -
}

_packages() { # the essential ones, these, and what they depend on
    # shellcheck disable=SC2046
    apt-cache depends --recurse --installed --no-{recommends,suggests,conflicts,breaks,replaces,enhances} \
        $(dpkg-query -W -f '${Essential} ${Package}\n' | sed -n 's/^yes //p') "$@" |
        grep -xFf <(dpkg-query -W -f '${Package}\n')
}

make_python_image() { # FOLDER TAG: stands in for python:3.11-slim
    mkdir "$1"
    { printf '/%s\n' bin sbin lib lib64; _packages apt binutils passwd tzdata python3 python3.11-venv | xargs dpkg-query -L; } |
        grep '^/' | _pack "$1/files.tar"
    docker import "$1/files.tar" "$2-files" >/dev/null
    rm "$1/files.tar"
    docker build --quiet --network host --tag "$2" - >/dev/null <<END
FROM $2-files
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN cp /usr/share/base-passwd/passwd.master /etc/passwd && cp /usr/share/base-passwd/group.master /etc/group \
 && install -d -m 1777 /tmp /var/tmp && install -d /run /root && touch /etc/shadow && ldconfig
CMD ["python3"]
END
}

make_postgres_image() { # FOLDER TAG PYTHON_TAG: stands in for postgres:15
    local binaries=/usr/lib/postgresql/15/bin
    mkdir "$1"
    { find /usr/lib/postgresql/15 /usr/share/postgresql/15 | grep -v llvm
      ldd $binaries/{postgres,initdb,pg_isready} /usr/lib/postgresql/15/lib/plpgsql.so | grep -o '/[^ ]*' | xargs realpath -s
      ldd $binaries/{postgres,initdb,pg_isready} | grep -o ' /[^ ]*' | xargs realpath; } | _pack "$1/files.tar"
    cat >"$1/start" <<'END'
#!/bin/sh
set -eu
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    initdb --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" --auth scram-sha-256 --encoding UTF8 --no-sync
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | postgres --single postgres
fi
exec postgres -c listen_addresses='*'
END
    cat >"$1/Dockerfile" <<END
FROM $3
ENV PATH=$binaries:\$PATH PGDATA=/var/lib/postgresql/data
ADD files.tar /
COPY start /usr/local/bin/start
RUN useradd --uid 999 --user-group postgres && ldconfig && install -d -o postgres -g postgres -m 700 \$PGDATA \
 && install -d -m 1777 /var/run/postgresql
STOPSIGNAL SIGINT
ENTRYPOINT ["start"]
END
    chmod 755 "$1/start"
    docker build --quiet --network host --tag "$2" "$1" >/dev/null
}
