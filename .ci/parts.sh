# shellcheck shell=bash
# For run and long: parts in lanes side by side. A lane is a function that calls `part` for one thing after the
# other. What a part prints goes to a file, which is shown whole when the part has ended. Sourced, not run.

log_folder=outputs/gate/$(basename "$0")
rm -rf "$log_folder"
mkdir -p "$log_folder"
lanes=()

part() { # NAME COMMAND...
    local name=$1 code=0 begun=$SECONDS
    shift
    "$@" >"$log_folder/$name.log" 2>&1 || code=$?
    {
        flock 9
        printf '\n== %s: exit code %d after %d s\n' "$name" "$code" "$((SECONDS - begun))"
        cat "$log_folder/$name.log"
        if ((code)); then echo "$name" >&9; fi
    } 9>>"$log_folder/failed"
}

lane() { # FUNCTION: start it, with a process group and Ctrl-C of its own
    set -m
    (
        trap 'exit 130' INT TERM # once the part that runs has ended: no further one begins
        "$1"
    ) &
    lanes+=($!)
    set +m
}

stop_lanes() { # Ctrl-C for all: pytest ends what its fixtures have started
    trap '' INT TERM
    local lane
    for lane in "${lanes[@]}"; do kill -INT -- "-$lane" 2>/dev/null || true; done
    wait
    echo "stopped"
    exit 130
}

finish() { # wait for the lanes; fail where a part has failed
    trap stop_lanes INT TERM
    local lane
    for lane in "${lanes[@]}"; do wait "$lane" || echo "a lane of $0" >>"$log_folder/failed"; done
    local result=passed
    if [[ -s $log_folder/failed ]]; then result="FAILED: $(paste -sd ' ' "$log_folder/failed")"; fi
    printf '\n== %s, %s, commit %s: %s (%d min %d s)\n' "$0" "$(date -u +%Y-%m-%d)" \
        "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "$result" $((SECONDS / 60)) $((SECONDS % 60))
    [[ ! -s $log_folder/failed ]]
}

install_packages() { # COMMAND=PACKAGES...: the packages of the commands that are missing, in one call; without them tests are skipped
    local packages=() entry
    for entry in "$@"; do
        command -v "${entry%%=*}" >/dev/null || read -ra packages <<<"${packages[*]} ${entry#*=}"
    done
    if ((${#packages[@]} == 0)); then return; fi
    if ((EUID)) || ! command -v apt-get >/dev/null; then
        echo "not installed, so their tests are skipped: ${packages[*]}"
        return
    fi
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } ||
        echo "could not be installed, so their tests are skipped: ${packages[*]}"
}

set_up() { # COMMAND=PACKAGES...: Debian's packages while pip installs Python's
    local packages
    install_packages "$@" >"$log_folder/packages.log" 2>&1 &
    packages=$!
    # every process of the gate may keep what it compiles, so pip need not compile what nobody imports
    unset PYTHONDONTWRITEBYTECODE
    PIP_NO_COMPILE=0 tools/setup.sh --dev # 0 turns compiling off: pip reads the value as that of --compile
    wait "$packages"
    cat "$log_folder/packages.log"
    printf '\n== set-up: %d s\n' "$SECONDS"
    export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1
}
