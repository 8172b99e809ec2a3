#!/bin/sh
# What `llama-jax pod` runs on each host: sh llama_jax_host.sh VERB ARGUMENT...
#
# ~/llama_jax/code    the code that was sent
# ~/llama_jax/python  the path of its Python; written last: what has none is not installed
# ~/llama_jax/run     id, pid and exit status of the newest run, its log, and a lock
#
# Whoever holds the lock trains or installs. A run inherits it, and so holds it to its end.

set -eu
UV_VERSION=0.13.8
base=$HOME/llama_jax
run=$base/run
mkdir -p "$run"
[ "$1" = keep ] || exec 9>>"$run/lock" # which has it from `start`, locked

take_lock() {
    flock -w 5 9 && return
    echo "a run is going on, or an installation: $(cat "$run/id")"
    exit 1
}

# install REQUIREMENTS [PYTHON]: unpack the code, and make an environment unless there is one.
install() {
    take_lock
    echo "installation" >"$run/id"
    rm -rf "$base/python" "$base/code" "$run/pid"
    mkdir "$base/code"
    tar -xzf "$HOME/llama_jax.tar.gz" -C "$base/code"
    python=${2:-}
    if [ -z "$python" ]; then
        python=$base/venv/bin/python
        if ! "$base/bin/uv" --version >/dev/null 2>&1; then
            curl -LsSf --retry 5 "https://astral.sh/uv/$UV_VERSION/install.sh" |
                UV_INSTALL_DIR=$base/bin UV_NO_MODIFY_PATH=1 sh
        fi
        "$base/bin/uv" venv --quiet --allow-existing --python 3.12 "$base/venv"
        "$base/bin/uv" pip install --quiet --python "$python" -r "$base/code/$1"
    fi
    "$python" -c 'import sys, jax; sys.exit(sys.version_info < (3, 11))'
    rm -f "$run/id" "$run/status"
    echo "$python" >"$base/python"
}

# start ID INDEX LABEL WORKDIR ARGUMENT...: run llama-jax, detached. A second time it does nothing.
start() {
    flock -w 5 9 || true
    [ "$(cat "$run/id" 2>/dev/null)" = "$1" ] && exit 0 # the answer to the first was lost
    take_lock
    rm -f "$run/status" "$run/pid"
    echo "$1" >"$run/id"
    setsid sh "$HOME/llama_jax_host.sh" keep "$@" </dev/null >/dev/null 2>&1 &
}

keep() {
    log=$4/logs/$1-$3.txt
    if [ "$2" = 0 ]; then
        copy "$base/code/REVISION.patch" "$4/code/$(cat "$base/code/REVISION").patch" 9>&- &
    fi
    shift 4
    cd "$base/code"
    PYTHONPATH=$base/code "$(cat "$base/python")" -m llama_jax "$@" >"$run/log.txt" 2>&1 &
    child=$!
    trap 'kill -TERM "$child"' TERM HUP
    echo "$child" >"$run/pid"
    (while sleep 60; do copy "$run/log.txt" "$log"; done) 9>&- &
    copier=$!
    status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do # a signal has ended the waiting, and not the run
        status=0
        wait "$child" || status=$?
    done
    kill "$copier"
    copy "$run/log.txt" "$log"
    echo "$status" >"$run/status"
    rm "$run/pid"
}

# copy FILE TO: into the workdir, as well as that works.
copy() {
    case $2 in
    gs://*) timeout 300 gcloud storage cp --quiet "$1" "$2" ;;
    *) mkdir -p "$(dirname "$2")" && cp "$1" "$2" ;;
    esac || true
}

# state: running, ended STATUS, ended unknown (both this script and the run were killed), idle, or
# absent (not installed); then the newest line of the log.
state() {
    if ! flock -n -s 9; then
        echo running
    elif [ ! -e "$base/python" ]; then
        echo absent
    elif [ -e "$run/status" ]; then
        echo "ended $(cat "$run/status")"
    elif [ -e "$run/id" ]; then
        echo "ended unknown"
    else
        echo idle
    fi
    tail -n 1 "$run/log.txt" 2>/dev/null || true
}

# newest WORKDIR: the step of the newest checkpoint.
newest() {
    case $1 in
    gs://*) gcloud storage ls "$1/checkpoints/" ;;
    *) ls "$1/checkpoints" ;;
    esac 2>/dev/null | sed 's|/$||; s|.*/||' | grep -x '[0-9][0-9]*' | sort -n | tail -n 1
}

# Print the run's process, once it has one; nothing if it ends before, or an installation does.
process() {
    until [ -s "$run/pid" ] || flock -n -s 9; do sleep 0.1; done
    cat "$run/pid" 2>/dev/null || true
}

# stop SECONDS: ask the run to save and end, and wait until it has.
stop() {
    if ! flock -n -s 9; then
        kill -TERM "$(process)" 2>/dev/null || true
        flock -w "$1" -s 9 || {
            echo "still running after $1 s"
            exit 1
        }
    fi
    state
}

# logs LINES [FOLLOW]: the end of the log; with FOLLOW, as it grows, until the run ends.
logs() {
    if [ -n "${2:-}" ] && ! flock -n -s 9; then
        tail -n "$1" -F --pid "$(process)" "$run/log.txt" 2>/dev/null
    else
        tail -n "$1" "$run/log.txt"
    fi
}

"$@"
