#!/bin/bash
# Builds the self-checking test guest: bzImage, initramfs.cpio.gz and tcg-cond-wait.so, in a cache directory outside
# the repository, whose path is the last line printed.
#
#   Images/build.sh            build what is missing or older than its recipe
#   Images/build.sh --force    build everything again (also fetches the kernel again)
#
# COLO_BLK_IMAGES  the cache directory [${XDG_CACHE_HOME:-$HOME/.cache}/colo-blk/images]
#
# Needs Debian or a relative of it: the kernel is the distribution's cloud kernel, fetched and unpacked, not installed.
# Missing tools are installed when run as root. Two runs at a time are safe; a run with nothing to do takes no second.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${COLO_BLK_IMAGES:-${XDG_CACHE_HOME:-$HOME/.cache}/colo-blk/images}

# In load order after resolution of their dependencies.
modules=(virtio_pci virtio_blk virtio_scsi sd_mod virtio_net)

say() { printf 'images: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

recipe_hash() {
    cat "$here/build.sh" "$here/guest/selfcheck.c" "$here/preload/tcg-cond-wait.c" | sha256sum | cut -d' ' -f1
}

complete() {
    [[ -f $cache/stamp && $(<"$cache/stamp") == "$1" && -s $cache/bzImage && -s $cache/initramfs.cpio.gz
        && -s $cache/tcg-cond-wait.so ]]
}

# need COMMAND PACKAGE...: installs the packages if the command is missing.
need() {
    local command=$1
    shift
    command -v "$command" >/dev/null && return
    install_packages "$@"
    command -v "$command" >/dev/null || die "$command is still missing after installing $*"
}

install_packages() {
    (( EUID == 0 )) || die "missing: $*. Install them, or run this once as root."
    command -v apt-get >/dev/null || die "missing: $*, and there is no apt-get to install them with."
    say "installing $*"
    local options=(-qq -y --no-install-recommends -o DPkg::Lock::Timeout=600)
    DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install "$@" >&2 || {
        apt-get -qq -o DPkg::Lock::Timeout=600 update >&2
        DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install "$@" >&2
    }
}

fetch_kernel() { # into $cache/kernel: vmlinuz and modules/*.ko
    [[ -s $cache/kernel/vmlinuz && $force == no ]] && return
    local package work=$cache/kernel.new
    package=$(kernel_package)
    if [[ -z $package ]]; then
        (( EUID != 0 )) || apt-get -qq -o DPkg::Lock::Timeout=600 update >&2
        package=$(kernel_package)
    fi
    [[ -n $package ]] || die "apt knows no linux-image-cloud-amd64: is this Debian on x86-64, with package lists fetched?"
    say "fetching $package"
    rm -rf "$work"
    mkdir -p "$work/deb" "$work/modules"
    (cd "$work/deb" && apt-get -qq download "$package" >&2)
    dpkg-deb -x "$work"/deb/*.deb "$work/tree"
    mv "$work"/tree/boot/vmlinuz-* "$work/vmlinuz"
    find "$work/tree" -name '*.ko' -path '*/kernel/*' -exec mv -n -t "$work/modules" {} +
    rm -rf "$work/deb" "$work/tree" "$cache/kernel"
    mv "$work" "$cache/kernel"
}

kernel_package() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: *\(linux-image-[^ ]*\)$/\1/p' | head -n1
}

# module_order NAME...: prints every module needed, dependencies first, each once.
declare -A listed=()
module_order() {
    local name dependency dependencies
    for name; do
        [[ -z ${listed[$name]:-} ]] || continue
        listed[$name]=1
        # A module that is not there as a file is built in.
        [[ -s $cache/kernel/modules/$name.ko ]] || continue
        dependencies=$(tr '\0' '\n' <"$cache/kernel/modules/$name.ko" | sed -n 's/^depends=//p' | tr ',-' ' _')
        for dependency in $dependencies; do module_order "$dependency"; done
        printf '%s\n' "$name"
    done
}

build_initramfs() {
    local root=$cache/root.new name
    rm -rf "$root"
    mkdir -p "$root"/{dev,proc,modules}
    gcc -O2 -Wall -Wextra -Werror -static -pthread -o "$root/init" "$here/guest/selfcheck.c"
    strip "$root/init"
    module_order "${modules[@]}" >"$root/modules/list"
    while read -r name; do
        cp "$cache/kernel/modules/$name.ko" "$root/modules/"
        strip --strip-debug "$root/modules/$name.ko"
    done <"$root/modules/list"
    # Fast compression: the guest unpacks this on an emulated processor.
    (cd "$root" && find . -print0 | LC_ALL=C sort -z | cpio --quiet -0 -o -H newc -R 0:0) | gzip -n -1 >"$cache/initramfs.new"
    mv "$cache/initramfs.new" "$cache/initramfs.cpio.gz"
    rm -rf "$root"
}

build_preload() {
    gcc -O2 -Wall -Wextra -Werror -shared -fPIC -fvisibility=hidden -o "$cache/preload.new" "$here/preload/tcg-cond-wait.c"
    mv "$cache/preload.new" "$cache/tcg-cond-wait.so"
}

force=no
case ${1:-} in
    '') ;;
    --force) force=yes ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit ;;
    *) die "unknown argument: $1" ;;
esac
[[ $(uname -m) == x86_64 ]] || die "the test guest is built on x86-64 only"
umask 022
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

exec 9>"$cache/.lock"
flock 9
need qemu-system-x86_64 qemu-system-x86
need qemu-img qemu-utils
hash=$(recipe_hash)
if [[ $force == yes ]] || ! complete "$hash"; then
    need gcc gcc libc6-dev
    need strip binutils
    need cpio cpio
    need dpkg-deb dpkg
    [[ -s /usr/lib/x86_64-linux-gnu/libc.a ]] || install_packages libc6-dev
    rm -f "$cache/stamp"
    fetch_kernel
    build_initramfs
    build_preload
    cp "$cache/kernel/vmlinuz" "$cache/bzImage.new"
    mv "$cache/bzImage.new" "$cache/bzImage"
    printf '%s\n' "$hash" >"$cache/stamp"
    say "built in $cache"
fi
printf '%s\n' "$cache"
