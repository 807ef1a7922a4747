/* Energies and forces of students in C.
 *
 * A student is a message-passing force field, read from an archive (NAME.pt) that
 * `mlff-student export` writes. The library needs no Python, no torch and no MD engine. Of the
 * archive, a zip file, it reads two members, both stored without compression: extra/metadata.json,
 * and extra/weights.safetensors, which has the weights in the layout of safetensors.
 *
 *     mlff_student_model *model = mlff_student_open("tiny.pt");
 *     mlff_student_workspace *work = mlff_student_new_workspace();
 *     if (!model || mlff_student_evaluate(model, work, 1, &system, &results))
 *       fprintf(stderr, "%s\n", mlff_student_error());
 *
 * Units: angstrom, eV, eV/angstrom. Matrices are stored row after row.
 *
 * Errors: functions that return a pointer return NULL, and functions that return a status return
 * one of the MLFF_STUDENT_* numbers below; `mlff_student_error` then has the reason. No C++
 * exception leaves the library, and outputs have no defined contents after an error.
 *
 * Threads: a model does not change after it was opened, so any number of threads may use it at the
 * same time. A workspace serves one call at a time. The argument `threads` is the number of threads
 * that the call itself uses; results do not depend on it. In a process that was forked after a call
 * with several threads, calls use one thread.
 *
 * Memory: opening an archive takes at most MLFF_STUDENT_OPEN_FACTOR times its size, plus 64 MiB,
 * and an archive above MLFF_STUDENT_LARGEST_ARCHIVE bytes is refused. Reading an archive never runs
 * anything that it contains.
 */
#ifndef MLFF_STUDENT_H
#define MLFF_STUDENT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MLFF_STUDENT_API __attribute__((visibility("default")))
#else
#define MLFF_STUDENT_API
#endif

/* Version of this interface. It changes when a program must be compiled again: a program should
 * compare this number with `mlff_student_abi()`. */
#define MLFF_STUDENT_ABI 1

#define MLFF_STUDENT_OPEN_FACTOR 8
#define MLFF_STUDENT_LARGEST_ARCHIVE (1 << 30)

enum {
  MLFF_STUDENT_OK = 0,
  MLFF_STUDENT_BAD_INPUT = 1,   /* an argument that cannot be used; the message has its value */
  MLFF_STUDENT_BAD_ARCHIVE = 2, /* a file that is damaged, altered or of another format */
  MLFF_STUDENT_NO_MEMORY = 3,
  MLFF_STUDENT_INTERNAL = 4 /* an error of this library */
};

typedef struct mlff_student_model mlff_student_model;
typedef struct mlff_student_workspace mlff_student_workspace;

/* Returns MLFF_STUDENT_ABI of the library. */
MLFF_STUDENT_API int mlff_student_abi(void);

/* Returns the reason of the last error of this thread; it stays valid until the next call. */
MLFF_STUDENT_API const char *mlff_student_error(void);

/* Returns its status, for functions that return a pointer. */
MLFF_STUDENT_API int mlff_student_error_status(void);

/* Returns the instruction set of the kernels: "avx512", "avx2" or "generic". */
MLFF_STUDENT_API const char *mlff_student_instruction_set(void);

/* Chooses an instruction set; "" chooses the best that this processor has. For tests and
 * measurements: not while a student is evaluated. */
MLFF_STUDENT_API int mlff_student_use_instruction_set(const char *name);

/* --- Models ---------------------------------------------------------------------------------- */

/* Opens an archive. The stored hash of the weights, and the energy and forces of a molecule that
 * are stored in the archive, are compared with what this library reads and computes. */
MLFF_STUDENT_API mlff_student_model *mlff_student_open(const char *file);

/* Opens an archive that is in memory; `name` stands for the file in messages. */
MLFF_STUDENT_API mlff_student_model *mlff_student_open_memory(const char *name, const void *bytes,
                                                              size_t size);

/* An array of weights with the name that it has in the Python class Student. */
typedef struct {
  const char *name;
  const double *values;
  const int64_t *shape;
  size_t dimensions;
} mlff_student_array;

/* Makes a model from weights in memory. `knots` is the number of knots of the tabulated filters; 0
 * lets the library choose. */
MLFF_STUDENT_API mlff_student_model *mlff_student_from_arrays(const mlff_student_array *arrays,
                                                              size_t count, double cutoff,
                                                              int64_t knots);

MLFF_STUDENT_API void mlff_student_close(mlff_student_model *model);

/* What is known of a model. All pointers stay valid until the model is closed. Texts are empty for
 * a model from arrays. */
typedef struct {
  const char *name;
  const char *teacher;
  const char *metadata; /* JSON text of the archive */
  double cutoff;        /* angstrom */
  int64_t parameters;   /* 0 for a model from arrays */
  int64_t channels, layers, knots;
  const int64_t *atomic_numbers; /* of the elements that it knows */
  size_t elements;
} mlff_student_facts;

MLFF_STUDENT_API mlff_student_facts mlff_student_describe(const mlff_student_model *model);

/* --- Evaluation ------------------------------------------------------------------------------ */

MLFF_STUDENT_API mlff_student_workspace *mlff_student_new_workspace(void);
MLFF_STUDENT_API void mlff_student_free_workspace(mlff_student_workspace *work);

/* Returns the memory of a workspace in bytes. It grows with the largest system and is kept. */
MLFF_STUDENT_API size_t mlff_student_workspace_bytes(const mlff_student_workspace *work);

/* A structure of `atoms` atoms. */
typedef struct {
  int64_t atoms;
  const double *positions;       /* (atoms, 3) angstrom */
  const int64_t *atomic_numbers; /* (atoms,) */
  const double *cell;            /* (3, 3) lattice vectors as rows, angstrom; NULL: no cell */
  const int *periodic;           /* (3,) whether the cell repeats along each vector; NULL: it does
                                    along all if there is a cell */
} mlff_student_system;

/* Where to write results; a pointer that is NULL is not written to. */
typedef struct {
  double *energies; /* (atoms,) eV; the energy of the structure is their sum */
  double *forces;   /* (atoms, 3) eV/angstrom */
  double *virial;   /* (3, 3) eV, the negative derivative of the energy by strain */
  double *virials;  /* (atoms, 3, 3) eV, half of the virial of each edge at each of its atoms */
} mlff_student_results;

/* Evaluates a structure; edges are searched by a list with a skin, which the workspace keeps. */
MLFF_STUDENT_API int mlff_student_evaluate(const mlff_student_model *model,
                                           mlff_student_workspace *work, int threads,
                                           const mlff_student_system *system,
                                           const mlff_student_results *results);

/* Evaluates a structure by `count` models of one cutoff, whose edges are searched once; `results`
 * has an entry for each model. */
MLFF_STUDENT_API int mlff_student_evaluate_committee(const mlff_student_model *const *models,
                                                     size_t count, mlff_student_workspace *work,
                                                     int threads, const mlff_student_system *system,
                                                     const mlff_student_results *results);

/* Evaluates directed edges i <- j with the vectors x_j - x_i: `index` (2, edges) has the receivers
 * in row 0 and the senders in row 1. Writes the energies of the first `local` atoms, and the
 * gradient (edges, 3) of their sum by the vectors. */
MLFF_STUDENT_API int mlff_student_evaluate_edges(const mlff_student_model *model,
                                                 mlff_student_workspace *work, int threads,
                                                 int64_t atoms, const int64_t *atomic_numbers,
                                                 int64_t edges, const int64_t *index,
                                                 const double *vectors, int64_t local,
                                                 double *energies, double *gradient);

/* Directed edges i <- j with vectors x_j - x_i, sorted by receiver: those of receiver i are
 * first[i] to first[i + 1]. */
typedef struct {
  int64_t edges;
  const int64_t *first;   /* (atoms + 1,) */
  const int32_t *senders; /* (edges,) */
  const double *vectors;  /* (edges, 3) angstrom */
} mlff_student_edges;

/* Searches all edges shorter than `cutoff` of a structure, whose atomic numbers are not used. With
 * a skin above 0, the next search with this workspace uses the list again as long as no atom has
 * moved by half of it. Cutoff and skin are in angstrom. The pointers stay valid until the next call
 * with this workspace. */
MLFF_STUDENT_API int mlff_student_search(mlff_student_workspace *work, double cutoff, double skin,
                                         const mlff_student_system *system,
                                         mlff_student_edges *edges);

/* --- Layer by layer, for engines that exchange the features of ghost atoms --------------------
 *
 * Nodes are atoms and ghosts; the first `receivers` nodes are this domain's atoms.
 *
 *     mlff_student_begin(...)
 *     for each layer l:  (l > 0: copy rows of q and mu of layer l to ghosts)
 *                        mlff_student_forward(model, work, l)
 *     mlff_student_readout(model, work)
 *     for each layer l, from the last: mlff_student_adjoint(model, work, l)
 *                        (l > 0: add rows of g_q and g_mu of ghosts to those of their atoms)
 *     mlff_student_finish(model, work, energies, gradient)
 */

/* Starts with a graph whose edges are sorted by receiver: those of receiver i are first[i] to
 * first[i + 1]. */
MLFF_STUDENT_API int mlff_student_begin(const mlff_student_model *model,
                                        mlff_student_workspace *work, int threads, int64_t nodes,
                                        int64_t receivers, const int64_t *atomic_numbers,
                                        const int64_t *first,   /* (receivers + 1,) */
                                        const int32_t *senders, /* (edges,) */
                                        const double *vectors /* (edges, 3) angstrom */);

MLFF_STUDENT_API int mlff_student_forward(const mlff_student_model *model,
                                          mlff_student_workspace *work, int64_t layer);
MLFF_STUDENT_API int mlff_student_readout(const mlff_student_model *model,
                                          mlff_student_workspace *work);
MLFF_STUDENT_API int mlff_student_adjoint(const mlff_student_model *model,
                                          mlff_student_workspace *work, int64_t layer);

/* Writes the energies (receivers,) and the gradient (edges, 3) of their sum by the vectors. */
MLFF_STUDENT_API int mlff_student_finish(const mlff_student_model *model,
                                         mlff_student_workspace *work, double *energies,
                                         double *gradient);

/* Features of all nodes, (nodes, channels) and (nodes, 3, channels), float32. The pointers may
 * change with each of the calls above. */
typedef struct {
  float *q, *mu;     /* before layer `layer`; mu is NULL before layer 0 */
  float *g_q, *g_mu; /* gradient by the features before the layer that was last undone */
} mlff_student_features;

MLFF_STUDENT_API mlff_student_features mlff_student_features_of(mlff_student_workspace *work,
                                                                int64_t layer);

#ifdef __cplusplus
}
#endif

#endif
