#!/usr/bin/env bash
# Make sure that the system's part is there: libraries for headless rendering (EGL or OSMesa with Mesa's software
# driver), and with a GPU a C compiler, which torch.compile calls there.
# With --browser also Chromium, without which the tests of the HTML pages are skipped; it is an error then to have none.
# Installs them on Debian and Ubuntu as root or with sudo; otherwise names them and the command.
set -eu
browser="" unmet=0
[ "${1:-}" != --browser ] || { browser=chromium unmet=1; }
packages="libosmesa6 libegl1 libgl1 libegl-mesa0 libglx-mesa0 libgl1-mesa-dri"
libraries="libEGL.so.1 libOSMesa.so libGL.so.1"

missing() {
    for library in $libraries; do
        /sbin/ldconfig -p 2>/dev/null | grep -q "$library" || { echo "$library"; return; }
    done
    ! command -v nvidia-smi >/dev/null || command -v cc >/dev/null || { echo "a C compiler"; return; }
    [ -z "$browser" ] || command -v chromium chromium-browser google-chrome >/dev/null || echo "Chromium"
}

[ -n "$(missing)" ] || exit 0
! command -v nvidia-smi >/dev/null || command -v cc >/dev/null || packages="$packages gcc libc6-dev"
packages="$packages $browser"
install="apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages"
if ! command -v apt-get >/dev/null; then
    echo "warning: $(missing) is missing. Install your system's packages for it (Debian: $packages)." >&2
    exit "$unmet"
fi
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif sudo -n true 2>/dev/null; then
    as_root="sudo"
else
    echo "warning: $(missing) is missing, and this needs root. Run:  sudo sh -c '$install'" >&2
    exit "$unmet"
fi
echo "installing $packages"
$as_root env DEBIAN_FRONTEND=noninteractive sh -c "$install" >/dev/null
[ -z "$(missing)" ] || { echo "error: $(missing) is still missing after installing $packages" >&2; exit 1; }
