# Sourced by the agents' scripts: packages at exact versions in .lab, a fresh folder for each turn.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lab=$here/.lab
case $(uname -m) in aarch64 | arm64) arch=arm64 ;; *) arch=x64 ;; esac

# install FOLDER PACKAGE@VERSION : from npm, once.
install() {
    mkdir -p "$lab/$1"
    [ "$(cat "$lab/$1/.version" 2>/dev/null)" = "$2" ] && return
    (
        cd "$lab/$1"
        echo '{"private":true}' >package.json
        npm install --ignore-scripts --no-audit --no-fund --no-progress --loglevel=error "$2" >&2
        echo "$2" >.version
    ) || { echo "cannot install $2" >&2; exit 70; }
}

# begin_turn NAME : $run is a fresh folder with a home and a desk, on which hello.txt lies.
begin_turn() {
    run=$(mktemp -d "${TMPDIR:-/tmp}/$1-turn.XXXXXX")
    trap 'rm -rf "$run"' EXIT
    mkdir -p "$run/home" "$run/desk"
    echo "the secret word is PLUMBUS" >"$run/desk/hello.txt"
}

# end_turn CODE NAME : prints the answer, or what went wrong, and exits.
end_turn() {
    local code=$1
    cat "$run/out"
    if [ "$code" -ne 0 ]; then
        tail -n 40 "$run/err" >&2
    elif [ ! -s "$run/out" ]; then
        echo "$2 printed no answer" >&2
        code=3
    fi
    exit "$code"
}
