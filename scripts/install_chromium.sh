#!/bin/sh
# The report is tested in headless Chromium: install Debian's where it is missing and this user may.
if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then exit 0; fi
if ! command -v apt-get >/dev/null; then
    echo "note: chromium and chromedriver not found; the browser test will be skipped" >&2
    exit 0
fi
if [ "$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo"; else
    echo "note: chromium not found and no right to install it; the browser test will be skipped" >&2
    exit 0
fi
$as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq chromium chromium-driver >/dev/null
