# Shared by the scripts of this folder; source it.

# install_missing PACKAGE...: installs through apt what dpkg does not have.
install_missing() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || {
            echo "these packages are missing and only root can install them: ${missing[*]}" >&2
            return 1
        }
        sudo=(sudo)
    fi
    echo "installing: ${missing[*]}" >&2
    "${sudo[@]}" apt-get -o DPkg::Lock::Timeout=300 update -qq
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends \
        "${missing[@]}" >/dev/null
}

build_packages=(libaio-dev libzstd-dev libqcow-dev zlib1g-dev pkg-config)
interop_packages=(qemu-utils nbdkit nbdkit-plugin-python libnbd-bin python3-libnbd fio openssl)
guest_packages=(qemu-system-x86 qemu-utils cpio gcc libc6-dev iproute2)

require_swift() {
    command -v swift >/dev/null || {
        echo "Swift 6.1 or later is needed: https://www.swift.org/install/linux/" >&2
        return 1
    }
}
