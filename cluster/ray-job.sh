#!/usr/bin/env bash
# Runs a study as a job on a Ray cluster that is up, and follows its log. Arguments are those of `cvtune run`:
#
#   export RAY_API_SERVER_ADDRESS=http://HEAD:8265    # dashboard of the head node, or your end of a tunnel to it
#   bash cluster/ray-job.sh workflows/asha.py --storage /shared/studies
#
# The current directory is copied to the cluster: run this where your workflow and its modules are. Images and
# --storage are absolute paths that all nodes share. The same command again follows the job while it runs, and submits
# it anew once it has ended, which takes the study up where it was. Ctrl-C ends the following only; to end the job:
#
#   RAY_AUTH_MODE=token ray job stop cvtune-NAME
set -euo pipefail

# The cluster's token is in ~/.ray/auth_token, or in the file that RAY_AUTH_TOKEN_PATH names. Say so explicitly: Ray
# sends a token only in this mode, even where it has one.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"

# What `ray job stop` waits between SIGTERM and SIGKILL. Ray's default is 3 s; cvtune lets running epochs break off,
# saves, and writes its tables.
export RAY_JOB_STOP_WAIT_TIME_S="${RAY_JOB_STOP_WAIT_TIME_S:-120}"

# Python with cvtune, here and on the nodes (an absolute path, if Ray was started there without it on the PATH).
python="${PYTHON:-python}"
node_python="${NODE_PYTHON:-python}"

# Where `cvtune run` itself runs. Without an option: on the head node, which the job cannot outlive anyway, and where
# it takes no slot from trials. Elsewhere, for example: DRIVER='--entrypoint-num-cpus 2' bash cluster/ray-job.sh ...
read -ra driver <<<"${DRIVER:-}"

if [[ $# -eq 0 || -z "${RAY_API_SERVER_ADDRESS:-}" ]]; then
    echo "usage: RAY_API_SERVER_ADDRESS=http://HEAD:8265 bash cluster/ray-job.sh WORKFLOW.py --storage DIR ..." >&2
    exit 2
fi

plan=$("$python" -m cvtune.job "$@")
{ read -r state && read -r id && read -r metadata && read -r runtime_env; } <<<"$plan"

if [[ "$state" != new ]]; then
    echo "this study is job $id already ($state); following its log. Ctrl-C ends only that." >&2
    exec ray job logs --follow "$id"
fi
"$python" -m cvtune.upload .

# exec: the shell that Ray starts becomes cvtune, so that SIGTERM reaches it and nobody else.
exec ray job submit --submission-id "$id" --working-dir . --metadata-json "$metadata" --runtime-env-json "$runtime_env" \
    ${driver[@]+"${driver[@]}"} -- exec "$node_python" -m cvtune.cli run "$@"
