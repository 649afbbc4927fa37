#!/usr/bin/env bash
# Installs what the project needs. Run it again whenever you like: a complete installation is left alone.
set -euo pipefail
unset CDPATH

usage() {
    cat <<'TEXT'
usage: tools/setup.sh [--dev] [--engine] [--system]

Makes the virtual environment .venv at the repository root and installs the pinned requirements and this package in
it, for a CPU or a GPU. An interrupted call is completed by the next one.

  --dev     also the test tools and linters
  --engine  also Transformer Engine and FlashAttention, which are compiled: needs the CUDA toolkit (nvcc) and cuDNN's
            headers, and takes from half an hour to hours. Runs on a GPU are faster with them.
  --system  no .venv: install into the active virtual environment, or into the container's Python. Whatever is there
            already, torch above all, stays as it is; only what is missing is added. Ends with an error where a version
            that is there does not fit (requirements/container.txt).

PYTHON=python3.11 tools/setup.sh takes another Python (3.10 to 3.12). Pip's own settings hold. Where the package index
gives a machine without GPU the CUDA build of torch, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gets the
small one.
TEXT
}

say() { printf 'setup: %s\n' "$*"; }
fail() {
    say "$*" >&2
    exit 2
}

dev=false
engine=false
system=false
for argument; do
    case $argument in
        --dev) dev=true ;;
        --engine) engine=true ;;
        --system) system=true ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail "unknown option $argument; tools/setup.sh --help lists them" ;;
    esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

root=$PWD
base=${PYTHON:-python3}
stamp=.venv/.setup-complete
# macOS has shasum
hash() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d' ' -f1; }
state="$(cat requirements/*.txt pyproject.toml studies/pyproject.toml tools/setup.sh | hash) engine=$engine $root"

check_base() {
    "$base" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null ||
        fail "$base is not a Python 3.10 to 3.12; name one: PYTHON=... tools/setup.sh"
}

# The lines of the given requirements files; of those, with --system, what is not installed in any version.
lines_of() {
    "$python" - "$system" "$@" <<'PYTHON'
import re, sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

def wanted(requirement):
    name = re.match(r"[\w.-]+", requirement).group()
    if sys.argv[1] != "true" or name == "setuptools":
        return True
    try:
        version(name)
    except PackageNotFoundError:
        return True
    return False

lines = [line.split("#")[0].strip() for path in sys.argv[2:] for line in Path(path).read_text().splitlines()]
print(*[line for line in lines if line and not line.startswith("-") and wanted(line)], sep="\n", end="")
PYTHON
}

# install TITLE FILE... [-- pip options]
install() {
    local title=$1 files=() lines
    shift
    while (($#)) && [[ $1 != -- ]]; do
        files+=("$1")
        shift
    done
    lines=$(lines_of "${files[@]}")
    if [[ -z $lines ]]; then return; fi
    say "$title"
    readarray -t lines <<<"$lines"
    "$python" -m pip install --disable-pip-version-check "${constraints[@]}" "${@:2}" "${lines[@]}"
}

# An installation with the development tools serves a call without --dev too, and keeps them when it is renewed.
leave_if_complete() {
    local have=""
    if [[ -f $stamp ]]; then have=$(<"$stamp"); fi
    case $have in
        "$state dev") exit 0 ;;
        "$state") if ! $dev; then exit 0; fi ;;
        *" dev") dev=true ;;
    esac
}

if $system; then
    python=$base
    check_base
    # What is there keeps its version: each installed distribution is a constraint. The others come as the tests ran.
    kept=$(mktemp)
    trap 'rm -f "$kept"' EXIT
    "$python" - >"$kept" <<'PYTHON'
import re, sys
from importlib.metadata import distributions
from pathlib import Path

def key(line):
    return re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()

# a fresh Python brings a setuptools that is too old
there = [f"{d.name}=={d.version}" for d in distributions() if d.name != "setuptools"]
tested = Path("requirements/constraints.txt").read_text().splitlines() if sys.version_info[:2] == (3, 11) else []
names = {key(line) for line in there}
print(*there, *(line for line in tested if "==" in line and key(line) not in names), sep="\n")
PYTHON
    constraints=(-c "$kept")
else
    python=.venv/bin/python
    # a user's settings of pip that would install elsewhere than in .venv
    export PIP_USER=0
    unset PIP_TARGET PIP_PREFIX
    leave_if_complete
    mkdir -p .venv
    exec 9>.venv/.setup-lock
    flock 9
    leave_if_complete
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        check_base
        "$base" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$base cannot make virtual environments; as root: apt-get install -y python3-venv"
        say "virtual environment .venv"
        "$base" -m venv .venv
    fi
    rm -f "$stamp"
    constraints=()
    if "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
        constraints=(-c requirements/constraints.txt)
    fi
fi

tools=()
if $dev; then tools=(requirements/dev.txt requirements/documents.txt); fi
install "torch" requirements/cpu.txt
install "requirements, some minutes" requirements/cpu.txt requirements/base.txt "${tools[@]}"
if $engine; then
    install "Transformer Engine and FlashAttention, which are compiled" requirements/gpu.txt -- --no-build-isolation ||
        fail "they need the CUDA toolkit (nvcc) and cuDNN's headers to build; use the NeMo container and --system, or go without --engine"
fi

# Whether the packages, imported from outside the checkout, are these ones, with their commands.
is_installed() {
    (cd tools && "$python" -c 'import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
specs = [find_spec(name) for name in ("solopo_nemo", "studies")]
here = all(spec and spec.origin and spec.origin.startswith(sys.argv[1]) for spec in specs)
sys.exit(not (here and entry_points(name="solopo") and entry_points(group="solopo.commands")))' "$root/")
}
if $system; then
    "$python" tools/check_versions.py
    if is_installed; then exit 0; fi
fi
say "this package and the studies"
"$python" -m pip install --disable-pip-version-check --no-deps -e . -e studies
if ! $system; then
    if $dev; then state+=" dev"; fi
    printf '%s\n' "$state" >"$stamp"
fi
say "complete: $python"
