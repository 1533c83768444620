# Makes .venv from a lock file; sourced by the scripts beside it, in the repository's root.
#
# ensure_environment up|dev    the environment that runs coffee-rt, or that also tests it
#
# Quick when nothing changed: the stamp in .venv names the lock and the interpreter it was made from.

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "coffee-rt needs Python 3.11 or newer, and $(python3 --version 2>/dev/null || echo 'no python3') is here." \
        "On Debian or Ubuntu: apt-get install python3 python3-venv"
}

make_venv() {
    local python
    python=$(find_python)
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "Python's venv is missing. On Debian or Ubuntu: apt-get install python3-venv"
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv ||
        fail "The environment .venv can't be made. On Debian or Ubuntu: apt-get install python3-venv"
    # uv installs the rest ten times faster; it comes from the lock as well.
    awk '/^uv==/ { inside = 1 } inside { print } inside && !/\\$/ { exit }' "$1" >.venv/uv.lock
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
        -r .venv/uv.lock || echo "uv can't be installed here; going on with pip"
}

install_lock() {
    echo "Installing what $1 names (once; later starts skip this)"
    if [[ -x .venv/bin/uv ]] &&
        .venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r "$1"; then
        return
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$1" ||
        fail "Packages can't be installed. Is the network reachable? Then run this again."
}

install_ourselves() {
    # The build hook builds the dashboard; hatchling and Node are in the lock, so nothing else is fetched.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
        --no-build-isolation --editable . || fail "coffee-rt can't be installed into .venv: see above."
}

page_is_fresh() {
    local page=services/coffee_rt/fanout/page/index.html
    [[ -f $page ]] &&
        [[ -z $(find dashboards/web \( -name node_modules -o -name dist \) -prune -o -type f -newer "$page" -print -quit) ]]
}

ensure_environment() {
    local kind=$1 lock stamp
    lock=requirements-build.lock
    [[ $kind == dev ]] && lock=requirements-dev.lock
    # The tests' environment holds all that the other one does.
    [[ $kind == up && -f .venv/stamp-dev ]] && kind=dev lock=requirements-dev.lock
    stamp="$PWD $(cksum <"$lock") $(cksum <pyproject.toml)"
    if [[ ! -x .venv/bin/coffee-rt || "$(cat ".venv/stamp-$kind" 2>/dev/null)" != "$stamp" ]]; then
        # An environment does not survive a move of its folder.
        [[ -x .venv/bin/python && "$(cat .venv/made 2>/dev/null)" == "$PWD" ]] || make_venv "$lock"
        printf '%s\n' "$PWD" >.venv/made
        install_lock "$lock"
        install_ourselves
        printf '%s\n' "$stamp" >".venv/stamp-$kind"
    fi
    page_is_fresh || .venv/bin/python hatch_build.py
}
