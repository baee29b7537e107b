#!/bin/sh
# Debian packages that tests use, where they are missing and this user may install them; a test without its tool is
# skipped. Arguments: chromium (the reports are opened in it), slurm (a two-node cluster on this machine; root only).
missing=""
for tool in "$@"; do
    case $tool in
    chromium)
        command -v chromium >/dev/null && command -v chromedriver >/dev/null || missing="$missing chromium chromium-driver"
        ;;
    slurm)
        command -v slurmctld >/dev/null && command -v munged >/dev/null || missing="$missing slurm-wlm munge"
        ;;
    esac
done
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null; then
    echo "note: not found:$missing; the tests that need them will be skipped" >&2
    exit 0
fi
if [ "$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo"; else
    echo "note: no right to install$missing; the tests that need them will be skipped" >&2
    exit 0
fi
# shellcheck disable=SC2086
$as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq $missing >/dev/null
