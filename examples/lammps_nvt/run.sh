#!/usr/bin/env bash
# A box of water at constant temperature in LAMMPS, on two ranks:
#
#   bash examples/lammps_nvt/run.sh [FOLDER [STEPS [MODEL]]]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-runs/examples/lammps_nvt} steps=${2:-2000} model=${3:-original}
mkdir -p "$folder"
cp "$here"/in.nvt "$here"/water.data "$folder"
python "$here/../../export.py" --model "$model" -o "$folder/$model.pt" --no-verify --quiet
eval "$(mlff-student lammps-env)"
cd "$folder"
OMP_NUM_THREADS=1 mpiexec -n 2 lmp -in in.nvt -var model "$model.pt" -var steps "$steps"
