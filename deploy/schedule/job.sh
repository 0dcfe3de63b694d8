#!/bin/sh
# Run one anomaly-vae command from cron: never twice at once, with retries, logs and reports.
#
#   job.sh NAME COMMAND [ARGUMENT]...        for example: job.sh retrain run payments.yaml
#
# It works in the current folder and writes logs/NAME/TIME.log (stderr), .json (the result) and
# .report (the reason for telling somebody). The report goes to the command in NOTIFY on its stdin;
# without one it goes to stdout, which cron mails. Exit codes:
#
#   0   done; also after a refused promotion, which is reported: the champion stays
#   75  skipped, because the previous run of NAME is still going
#   else that of the last attempt; it was reported
#
# Variables: RETRIES (2), RETRY_SECONDS (600), KEEP_DAYS (90), NOTIFY (cat).
set -u

if [ $# -lt 2 ]; then
    echo 'usage: job.sh NAME COMMAND [ARGUMENT]...' >&2
    exit 2
fi
name=$1
shift
: "${RETRIES:=2}" "${RETRY_SECONDS:=600}" "${KEEP_DAYS:=90}" "${NOTIFY:=cat}"
run=logs/$name/$(date -u +%Y%m%dT%H%M%SZ)-$$

# Send a headline and, from stdin, its details.
report() {
    { echo "$name: $1" && cat; } >"$run.report"
    sh -c "$NOTIFY" <"$run.report" 9>&- && return
    echo "$name: NOTIFY failed; the report is $run.report" >&2
}

# The command inherits file descriptor 9, so the lock lasts while it lives, even without this shell.
attempt() {
    echo "$(date -u +%FT%TZ) anomaly-vae $*" >>"$run.log"
    anomaly-vae "$@" >"$run.json" 2>>"$run.log"
    code=$?
    [ -s "$run.json" ] || rm -f "$run.json"
    echo "$(date -u +%FT%TZ) exit code $code" >>"$run.log"
}

mkdir -p "logs/$name" || exit 1
exec 9>"logs/$name.lock" || exit 1
if ! flock -n 9; then
    report 'skipped, because the previous run is still going' </dev/null
    exit 75
fi
find "logs/$name" -type f -mtime "+$KEEP_DAYS" -exec rm -f {} +

attempt "$@"
while [ "$RETRIES" -gt 0 ]; do
    case $code in 0 | 2 | 3 | 130) break ;; esac
    RETRIES=$((RETRIES - 1))
    sleep "$RETRY_SECONDS" 9>&-
    attempt "$@"
done

case $code in
    0) exit 0 ;;
    3)
        sed -n '/remains challenger, because/,$p' "$run.log" |
            report 'promotion refused; the champion stays'
        exit 0
        ;;
    *)
        tail -n 20 "$run.log" | report "failed with exit code $code"
        exit "$code"
        ;;
esac
