# Builds container images with docker, podman or buildah, whichever is there; sourced by scripts/image,
# scripts/k8s-up and k8s-tests/images/build.
#
# find_engine                           sets `engine`, installs buildah on a Debian without any (as root)
# ensure_base [REFERENCE|built]         sets `base_image` and `base_build_image`: given, the Dockerfile's, or made here
# build_image NAME CONTEXT ARGUMENTS... builds, with certificates and indexes of this machine as build secrets
# save_image NAME FILE                  writes an archive that containerd and kind import, unless FILE is that already
#
# Everything kept between builds is in the engine's own storage and in $image_cache.

image_cache="${COFFEE_RT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/coffee-rt}/images"
# Changing any of these makes new bases. usr-is-merged spares Perl, a third of a small Debian; libstdc++ is for protobuf
# and Node. What builds has besides: strip, and the valkey-cli of k8s-tests/images.
base_suite=bookworm
base_packages=ca-certificates,libstdc++6,python3,tini,usr-is-merged
build_packages=$base_packages,binutils,python3-venv,redis-tools

engine=
base_image=
base_build_image=
secrets=()

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

# timed SENTENCE COMMAND...: says what is done, does it, and says how long it took.
timed() {
    local sentence=$1 started_at=$EPOCHREALTIME
    shift
    printf '== %s\n' "$sentence" >&2
    "$@" || fail "Failed: $sentence (see above)."
    awk -v from="$started_at" -v to="$EPOCHREALTIME" 'BEGIN { printf "   %.1f s\n", to - from }' >&2
}

install_debian() {
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        fail "Missing: $*. On Debian: apt-get install $*"
    fi
    timed "Installing Debian's $*" eval 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends '"$*"' >/dev/null'
}

engine_works() {
    case "$1" in
    docker | podman) command -v "$1" >/dev/null && "$1" info >/dev/null 2>&1 ;;
    buildah) command -v buildah >/dev/null ;;
    *) fail "There is no engine '$1' here: docker, podman or buildah." ;;
    esac
}

find_engine() {
    local wanted=${1:-} candidate
    if [[ $wanted ]]; then
        engine_works "$wanted" || fail "$wanted does not work here (for docker: is its daemon running?)."
        engine=$wanted
        return
    fi
    for candidate in docker podman buildah; do
        if engine_works "$candidate"; then
            engine=$candidate
            return
        fi
    done
    [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null ||
        fail "No docker, podman or buildah works here. On Debian: apt-get install podman"
    install_debian buildah
    engine=buildah
}

has_image() {
    if [[ $engine == buildah ]]; then
        buildah inspect --type image "$1" >/dev/null 2>&1
    else
        "$engine" image inspect "$1" >/dev/null 2>&1
    fi
}

pull_image() {
    timeout 120 "$engine" pull --quiet "$1" >/dev/null 2>&1
}

ensure_base() {
    local wanted=${1:-} default
    default=$(sed -n 's/^ARG BASE_IMAGE=//p' "$(dirname "${BASH_SOURCE[0]}")/../services/Dockerfile")
    if [[ ! $wanted ]] && { has_image "$default" || pull_image "$default"; }; then
        wanted=$default
    fi
    if [[ $wanted && $wanted != built ]]; then
        base_image=$wanted base_build_image=$wanted
        return
    fi
    build_base "$build_packages"
    base_build_image=$base_image
    build_base "$base_packages"
}

# Makes a small Debian with these packages from Debian's mirror, once for these inputs; sets `base_image`.
build_base() {
    local packages=$1 key archive
    key=$(printf '%s\n' "$base_suite" "$packages" "$(uname -m)" "$(declare -f bootstrap)" | sha256sum | cut -c1-12)
    base_image=localhost/coffee-rt-base:$key
    archive=$image_cache/base-$key.tar
    if has_image "$base_image"; then
        return
    fi
    if [[ ! -f $archive ]]; then
        [[ $(id -u) == 0 ]] || fail "No registry of images can be reached, and making a base image needs root." \
            "Name one that is here with --base."
        command -v mmdebstrap >/dev/null || install_debian mmdebstrap
        mkdir -p "$image_cache"
        timed "Making a base image of Debian $base_suite ($packages)" bootstrap "$packages" "$archive.new"
        mv "$archive.new" "$archive"
    fi
    timed "Importing the base image" import_base "$archive"
}

bootstrap() {
    local merge=/usr/share/mmdebstrap/hooks/merged-usr
    mmdebstrap --quiet --format=tar --variant=custom --hook-dir="$merge" \
        --include='?essential' --include="$1" \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --customize-hook='rm -f "$1/etc/resolv.conf" "$1/etc/hostname"' \
        "$base_suite" "$2" 2>"$2.log" || {
        cat "$2.log" >&2
        return 1
    }
    rm -f "$2.log"
}

import_base() {
    local container
    if [[ $engine != buildah ]]; then
        "$engine" import "$1" "$base_image" >/dev/null
        return
    fi
    container=$(buildah from scratch)
    if buildah add --quiet "$container" "$1" / >/dev/null &&
        buildah commit --quiet --rm "$container" "$base_image" >/dev/null; then
        return
    fi
    buildah rm "$container" >/dev/null
    return 1
}

# Hands what this machine's pip and npm are told (a CA bundle, other indexes) to the build, as secrets: they are
# there while a step runs and in no layer.
collect_secrets() {
    local folder=$1 bundle
    secrets=()
    for bundle in "${SSL_CERT_FILE:-}" "${PIP_CERT:-}" "${REQUESTS_CA_BUNDLE:-}" "${NODE_EXTRA_CA_CERTS:-}"; do
        if [[ -f $bundle ]]; then
            secrets+=(--secret "id=certificates,src=$bundle")
            break
        fi
    done
    if pip_config >"$folder/pip.conf" && [[ -s $folder/pip.conf ]]; then
        secrets+=(--secret "id=pip-config,src=$folder/pip.conf")
    fi
    npm_config >"$folder/npmrc"
    [[ -s $folder/npmrc ]] && secrets+=(--secret "id=npm-config,src=$folder/npmrc")
    return 0
}

pip_config() {
    python3 -m pip config list 2>/dev/null | python3 -c '
import ast, sys

kept = {"index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout", "timeout", "retries"}
found = {}
# The environment comes last, because it wins.
for line in sorted(sys.stdin, key=lambda line: line.startswith(":env:")):
    name, _, value = line.rstrip("\n").partition("=")
    section, _, key = name.rpartition(".")
    if section in ("global", "install", ":env:") and key in kept:
        found[key] = " ".join(ast.literal_eval(value).split())
if found:
    print("[global]", *(f"{key} = {value}" for key, value in found.items()), sep="\n")
'
}

npm_config() {
    local file=${NPM_CONFIG_USERCONFIG:-$HOME/.npmrc} registry=${NPM_CONFIG_REGISTRY:-${npm_config_registry:-}}
    if [[ -f $file ]] && grep -q registry "$file"; then
        grep -E 'registry|_auth|^//' "$file"
    fi
    [[ $registry ]] && printf 'registry=%s\n' "$registry"
    return 0
}

build_image() {
    local name=$1 context=$2 folder status=0 variable proxies=()
    shift 2
    folder=$(mktemp -d)
    collect_secrets "$folder"
    # Known to every engine, and kept out of the image by all of them.
    for variable in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
        [[ ${!variable:-} ]] && proxies+=(--build-arg "$variable=${!variable}")
    done
    set -- --quiet --tag "$name" "${secrets[@]}" "${proxies[@]}" "$@" "$context"
    case $engine in
    docker) DOCKER_BUILDKIT=1 docker build "$@" >/dev/null || status=$? ;;
    podman) podman build --layers "$@" >/dev/null || status=$? ;;
    # chroot: builds where no container may be started, as in a pod or a sandbox.
    buildah)
        buildah build --layers --isolation chroot --network host "$@" >/dev/null || status=$?
        ;;
    esac
    rm -rf "$folder"
    return $status
}

save_image() {
    local name=$1 file=$2 content
    content="$name $(image_id "$name")"
    if [[ -f $file && "$(cat "$file.content" 2>/dev/null)" == "$content" ]]; then
        return
    fi
    mkdir -p "$(dirname "$file")"
    rm -f "$file" "$file.content"
    case $engine in
    docker) docker save --output "$file" "$name" ;;
    podman) podman save --quiet --format oci-archive --output "$file" "$name" ;;
    buildah) buildah push --quiet "$name" "oci-archive:$file:$name" ;;
    esac || return
    printf '%s\n' "$content" >"$file.content"
}

# The first digits of what names its content.
image_id() {
    local id
    if [[ $engine == buildah ]]; then
        id=$(buildah inspect --type image --format '{{.FromImageID}}' "$1")
    else
        id=$("$engine" image inspect --format '{{.Id}}' "$1")
    fi
    id=${id#sha256:}
    printf '%s\n' "${id:0:12}"
}

# The size of all its layers, unpacked, in bytes.
image_bytes() {
    local container folder
    if [[ $engine != buildah ]]; then
        "$engine" image inspect --format '{{.Size}}' "$1"
        return
    fi
    container=$(buildah from --pull-never "$1")
    folder=$(buildah mount "$container")
    du --summarize --bytes --one-file-system "$folder" | cut -f1
    buildah rm "$container" >/dev/null
}
