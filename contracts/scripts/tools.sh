# Sourced by `check` and `deep`, in contracts/: installs the tools when they are not there or their
# versions changed, and puts them on the PATH.

step() { printf '\n== %s ==\n' "$1"; }

if ! cmp -s package-lock.json node_modules/.installed; then
    step "Installs forge, anvil, solc, OpenZeppelin and viem (npm)"
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
    cp package-lock.json node_modules/.installed
fi
if ! cmp -s requirements.txt .venv/.installed; then
    step "Installs halmos and slither (PyPI)"
    python3 -m venv .venv
    .venv/bin/pip install -q --disable-pip-version-check -r requirements.txt
    cp requirements.txt .venv/.installed
fi
PATH=$PWD/bin:$PWD/.venv/bin:$PATH
