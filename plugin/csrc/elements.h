// Symbols of the elements. No std::string is in this header, so that code with another C++ ABI can
// use it.
#pragma once

#include <cstdint>
#include <cstring>
#include <iterator>

namespace mlff_student {

// In the order of the atomic numbers, from 1.
inline constexpr const char *SYMBOLS[] = {
    "H",  "He", "Li", "Be", "B",  "C",  "N",  "O",  "F",  "Ne", "Na", "Mg", "Al", "Si", "P",
    "S",  "Cl", "Ar", "K",  "Ca", "Sc", "Ti", "V",  "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn",
    "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y",  "Zr", "Nb", "Mo", "Tc", "Ru", "Rh",
    "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I",  "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd",
    "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W",  "Re",
    "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th",
    "Pa", "U",  "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf", "Db",
    "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"};
constexpr int64_t HEAVIEST = std::size(SYMBOLS);

// Returns the symbol such as "C"; null if no element has this atomic number.
inline const char *symbol_of(int64_t atomic_number) {
  return atomic_number < 1 || atomic_number > HEAVIEST ? nullptr : SYMBOLS[atomic_number - 1];
}

// Returns the atomic number of a symbol; 0 if no element has it.
inline int64_t atomic_number(const char *symbol) {
  for (int64_t z = 1; z <= HEAVIEST; z++)
    if (std::strcmp(symbol_of(z), symbol) == 0) return z;
  return 0;
}

} // namespace mlff_student
