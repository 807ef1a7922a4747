#!/bin/bash
# Runs the C++ programs of this folder with sanitizers, which takes minutes: memory errors and
# undefined behaviour, also while damaged archives are opened; and races between threads. OpenMP is
# not instrumented, so the second run has one thread inside each call.
#
#     tests/build/sanitize.sh ARCHIVE.pt FOLDER [COUNT]
set -eu
archive=$(realpath "$1") count=${3:-5000}
here=$(cd "$(dirname "$0")" && pwd)
core=$here/../../plugin/csrc
vesin=$(python -c 'import os, vesin; print(os.path.dirname(vesin.__file__))')
mkdir -p "$2"
cd "$2"

build() { # name of the folder, options
  local folder=$1
  shift
  mkdir -p "$folder"
  local options=(-std=c++17 -O1 -g -fopenmp -Wno-psabi "$@" -I"$core" -I"$vesin/include")
  for source in "$core"/*.cpp; do
    case $source in */operators.cpp | */script.cpp) continue ;; esac
    c++ "${options[@]}" -DMLFF_STUDENT_ISA=generic -DVESIN_SHARED -c "$source" \
      -o "$folder/$(basename "$source" .cpp).o"
  done
  for program in check_layers check_threads check_calls check_open; do
    c++ "${options[@]}" -DNO_COUNTING "$here/$program.cpp" "$folder"/*.o \
      "$vesin/lib/libvesin.so" -Wl,-rpath,"$vesin/lib" -pthread -o "$folder/$program"
  done
}

build address -fsanitize=address,undefined -fno-sanitize-recover=all
address/check_layers
address/check_threads 2
address/check_calls
address/check_open 0 "$count" "$archive"
build thread -fsanitize=thread
thread/check_threads 1
thread/check_layers
