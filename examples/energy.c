/* Prints energy and forces of the first structure of an XYZ file.
 *
 *     cc energy.c -I FOLDER/include -L FOLDER/lib -lmlff_student -o energy
 *     ./energy tiny.pt ethanol.xyz
 *
 * FOLDER is printed by: python -c "import mlff_student; print(mlff_student.__path__[-1])"
 */
#include "mlff_student.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number_of(const char *symbol) {
  static const char *symbols[] = {"H", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I"};
  static const int numbers[] = {1, 6, 7, 8, 9, 15, 16, 17, 35, 53};
  for (int k = 0; k < 10; k++)
    if (strcmp(symbol, symbols[k]) == 0) return numbers[k];
  return 0;
}

int main(int count, char **arguments) {
  FILE *file = count == 3 ? fopen(arguments[2], "r") : NULL;
  long atoms = 0;
  char line[1000], symbol[8];
  if (!file || !fgets(line, sizeof(line), file) || sscanf(line, "%ld", &atoms) != 1 || atoms < 1 ||
      !fgets(line, sizeof(line), file)) {
    fprintf(stderr, "usage: energy MODEL.pt FILE.xyz\n");
    return 2;
  }
  /* In one array: positions, forces, and the energy of each atom. */
  int64_t *numbers = calloc(atoms, sizeof(*numbers));
  double *x = calloc(7 * atoms, sizeof(*x)), *forces = x + 3 * atoms, *energies = x + 6 * atoms;
  for (long i = 0; i < atoms; i++) {
    double *at = x + 3 * i;
    if (!fgets(line, sizeof(line), file) ||
        sscanf(line, "%7s %lf %lf %lf", symbol, at, at + 1, at + 2) != 4) {
      fprintf(stderr, "%s, line %ld: expected symbol, x, y, z\n", arguments[2], i + 3);
      return 2;
    }
    numbers[i] = number_of(symbol);
  }

  mlff_student_model *model = mlff_student_open(arguments[1]);
  mlff_student_workspace *work = mlff_student_new_workspace();
  const mlff_student_system system = {atoms, x, numbers, NULL, NULL};
  const mlff_student_results results = {energies, forces, NULL, NULL};
  if (!model || !work || mlff_student_evaluate(model, work, 1, &system, &results)) {
    fprintf(stderr, "%s\n", mlff_student_error());
    return 1;
  }

  double energy = 0.0;
  for (long i = 0; i < atoms; i++) energy += energies[i];
  printf("energy %.6f eV\n", energy);
  for (long i = 0; i < atoms; i++)
    printf("%12.6f %12.6f %12.6f eV/angstrom\n", forces[3 * i], forces[3 * i + 1],
           forces[3 * i + 2]);
  mlff_student_free_workspace(work);
  mlff_student_close(model);
  free(x);
  free(numbers);
  fclose(file);
  return 0;
}
