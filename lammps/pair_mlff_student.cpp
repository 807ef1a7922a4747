// SPDX-License-Identifier: GPL-2.0-or-later

#include "pair_mlff_student.h"

#include "atom.h"
#include "comm.h"
#include "compute.h"
#include "error.h"
#include "fix.h"
#include "force.h"
#include "group.h"
#include "memory.h"
#include "modify.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "timer.h"
#include "update.h"
#include "utils.h"

#include "elements.h"
#include "torch_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>

using namespace LAMMPS_NS;
using namespace mlff_student;

namespace {

constexpr double COINCIDENCE = 1e-3; // angstrom; atoms that are closer are an error
// Rules by which LAMMPS leaves pairs out of neighbor lists. 1, 2 and 3 are the 1-2, 1-3 and 1-4
// neighbors of special_bonds; those of `neigh_modify exclude` are counted from EXCLUDE on.
enum Rule { NONE = 0, TEMPLATE = 4, INCLUDE = 5, BORDER = 6, EXCLUDE = 7 };
constexpr const char *USAGE =
    "pair_style mlff_student [backend auto|native|portable] [device cpu|cuda] [threads N] "
    "[committee mean|first]";

bool names_element(const std::string &word) {
  return word == "NULL" || atomic_number(word.c_str()) > 0;
}

template <typename Word> std::string join(const std::vector<Word> &words) {
  std::string text;
  for (const auto &word : words) (text += text.empty() ? "" : " ") += word;
  return text;
}

// Returns the text at a key of a JSON object. A quoted word before a colon can only be a key.
std::string text_in_json(const std::string &json, const std::string &key) {
  const std::string mark = "\"" + key + "\": \"";
  const auto begin = json.find(mark);
  if (begin == std::string::npos) return "";
  return json.substr(begin + mark.size(),
                     json.find('"', begin + mark.size()) - begin - mark.size());
}

// Throws if a function of the C interface has failed.
void check(int status) {
  if (status != MLFF_STUDENT_OK) throw std::runtime_error(mlff_student_error());
}

// Reads the group of `comm_modify group`, which LAMMPS shows to derived classes only.
struct BorderGroup : Comm {
  static int of(Comm *comm) { return comm->*(&BorderGroup::bordergroup); }
};

// Returns how many doubles hold the scalar and vector features of one atom. A double holds two
// float32.
constexpr std::size_t packed_size(std::size_t channels) { return 2 * channels; }

void pack(const float *q, const float *mu, std::size_t channels, double *buf) {
  std::memcpy(buf, q, channels * sizeof(float));
  std::memcpy(buf + channels / 2, mu, 3 * channels * sizeof(float));
}

void add_packed(const double *buf, std::size_t channels, float *q, float *mu) {
  const auto add = [](const double *from, std::size_t count, float *to) {
    for (std::size_t k = 0; k < count; k += 2) {
      float pair[2];
      std::memcpy(pair, from + k / 2, sizeof(pair));
      to[k] += pair[0];
      to[k + 1] += pair[1];
    }
  };
  add(buf, channels, q);
  add(buf + channels / 2, 3 * channels, mu);
}

} // namespace

struct PairMLFFStudent::Member {
  explicit Member(mlff_student_model *model)
      : model(model, &mlff_student_close), facts(mlff_student_describe(model)) {
    read_facts();
  }
  Member(const TorchBackend *torch, void *script)
      : torch(torch), script(script, torch->close), facts(torch->describe(script)) {
    read_facts();
  }
  void read_facts() {
    dtype = text_in_json(facts.metadata, "dtype");
    for (std::size_t k = 0; k < facts.elements; k++)
      if (const char *symbol = symbol_of(facts.atomic_numbers[k])) elements.push_back(symbol);
  }

  // One of both, as the backend is native or portable.
  std::unique_ptr<mlff_student_model, void (*)(mlff_student_model *)> model{nullptr, nullptr};
  const TorchBackend *torch = nullptr;
  std::unique_ptr<void, void (*)(void *)> script{nullptr, nullptr};

  mlff_student_facts facts;
  std::string dtype;
  std::vector<std::string> elements;
};

PairMLFFStudent::PairMLFFStudent(LAMMPS *lmp) : Pair(lmp), work(mlff_student_new_workspace()) {
  if (!work) error->one(FLERR, "pair_style mlff_student: {}", mlff_student_error());
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  unit_convert_flag = utils::get_supported_conversions(utils::ENERGY);
  centroidstressflag = CENTROID_AVAIL;
  // The largest and mean deviation of the forces, and the deviation of the energy. The base class
  // declares it as a plain pointer.
  pvector = new double[3]{};
}

PairMLFFStudent::~PairMLFFStudent() {
  delete[] pvector;
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

void PairMLFFStudent::settings(int narg, char **arg) {
  backend = "auto";
  device = "cpu";
  threads = 0;
  mean = true;
  const auto require_known = [&](const std::string &key, const std::string &value,
                                 const std::vector<std::string> &known) {
    if (std::find(known.begin(), known.end(), value) == known.end())
      error->all(FLERR, "pair_style mlff_student: {} '{}' is unknown, expected one of {}; use: {}",
                 key, value, join(known), USAGE);
  };
  for (int k = 0; k < narg; k += 2) {
    const std::string key = arg[k];
    if (key != "backend" && key != "device" && key != "threads" && key != "committee")
      error->all(FLERR,
                 "pair_style mlff_student has no option '{}'; use: {}. The archive and the "
                 "elements are arguments of pair_coeff: pair_coeff * * FILE.pt ELEMENT ...",
                 key, USAGE);
    if (k + 1 == narg)
      error->all(FLERR, "pair_style mlff_student: {} has no value; use: {}", key, USAGE);
    const std::string value = arg[k + 1];
    if (key == "backend") {
      require_known(key, value, {"auto", "native", "portable"});
      backend = value;
    } else if (key == "device") {
      require_known(key, value, {"cpu", "cuda"});
      device = value;
    } else if (key == "committee") {
      require_known(key, value, {"mean", "first"});
      mean = value == "mean";
    } else {
      threads = utils::inumeric(FLERR, value, false, lmp);
      if (threads < 1)
        error->all(FLERR, "pair_style mlff_student: threads is {}, expected 1 or more", value);
    }
  }
  // Models that were read before were made for the old options.
  committee.clear();
  if (allocated)
    for (int i = 1; i <= atom->ntypes; i++) std::fill_n(setflag[i] + 1, atom->ntypes, 0);
}

void PairMLFFStudent::coeff(int narg, char **arg) {
  const std::string units = update->unit_style;
  if (units != "metal" && units != "real")
    error->all(FLERR, "pair_style mlff_student needs 'units metal' or 'units real', found '{}'",
               units);
  ev_to_energy =
      units == "real" ? utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL) : 1.0;

  if (narg < 3)
    error->all(FLERR, "pair_style mlff_student needs: pair_coeff * * FILE.pt ELEMENT ...");
  int first_element = 3;
  while (first_element < narg && !names_element(arg[first_element])) first_element++;

  committee.clear();
  const std::string reason = open_archives({arg + 2, arg + first_element});
  for (const auto &member : committee) {
    const mlff_student_facts &last = member.facts, &first = committee.front().facts;
    if (last.cutoff != first.cutoff)
      error->all(FLERR,
                 "pair_style mlff_student: models {} and {} have the cutoffs {} and {} angstrom; "
                 "choose members of a committee that have the same cutoff",
                 first.name, last.name, first.cutoff, last.cutoff);
  }
  cutoff = committee.front().facts.cutoff;
  map_types(narg - first_element, arg + first_element);

  comm_forward = 1; // the owner of each ghost
  comm_reverse = 0;
  if (native)
    for (const auto &member : committee) {
      comm_forward = std::max<int>(comm_forward, packed_size(member.facts.channels));
      comm_reverse = std::max<int>(comm_reverse, packed_size(member.facts.channels));
    }
  nextra = committee.size() > 1 ? 3 : 0;
  if (committee.size() > 1) comm_reverse = std::max<int>(comm_reverse, 3 * committee.size());

  if (comm->me == 0)
    for (const auto &member : committee)
      utils::logmesg(
          lmp,
          "mlff_student: model {}, {} parameters, {}, backend {}{}, {} MPI rank(s) with {} "
          "thread(s), cutoff {} angstrom, teacher {}\n",
          member.facts.name, member.facts.parameters, member.dtype,
          native ? std::string("native on ") + mlff_student_instruction_set()
                 : "portable on " + device,
          reason, comm->nprocs, threads ? threads : comm->nthreads, member.facts.cutoff,
          member.facts.teacher);
}

// Returns the contents of an archive. The first rank reads it for all ranks.
std::string PairMLFFStudent::read_file(const char *name) {
  std::string content;
  int64_t size = -1;
  if (comm->me == 0) {
    const std::string path = utils::get_potential_file_path(name);
    std::ifstream file(path, std::ios::binary);
    if (!path.empty() && file) {
      content.assign(std::istreambuf_iterator<char>(file), {});
      size = content.size();
    }
  }
  MPI_Bcast(&size, 1, MPI_INT64_T, 0, world);
  if (size < 0)
    error->all(FLERR,
               "pair_style mlff_student cannot read archive '{}' in the current folder or in "
               "LAMMPS_POTENTIALS, and '{}' is not an element; write the archive with 'python "
               "export.py --model NAME', or correct the path",
               name, name);
  content.resize(size);
  MPI_Bcast(content.data(), static_cast<int>(size), MPI_CHAR, 0, world);
  return content;
}

// Reads the committee and sets `native`; returns the reason if the backend is auto.
std::string PairMLFFStudent::open_archives(const std::vector<std::string> &files) {
  std::vector<std::string> archives;
  for (const auto &file : files) archives.push_back(read_file(file.c_str()));
  std::string obstacle;
  if (device != "cpu") obstacle = "native kernels run on the CPU, not on " + device;
  for (std::size_t k = 0; k < files.size() && backend != "portable" && obstacle.empty(); k++) {
    const std::string &archive = archives[k];
    if (auto *model = mlff_student_open_memory(files[k].c_str(), archive.data(), archive.size())) {
      committee.emplace_back(model);
      continue;
    }
    const std::string refusal = mlff_student_error();
    const char *reason = why_not_native(files[k].c_str(), archive.data(), archive.size());
    if (!reason) error->all(FLERR, "pair_style mlff_student: {}", refusal);
    obstacle = reason;
  }
  native = backend != "portable" && obstacle.empty();
  if (!native) {
    if (backend == "native")
      error->all(FLERR,
                 "pair_style mlff_student cannot use backend native: {}; export the model in "
                 "float32 for device cpu, or choose backend portable",
                 obstacle);
    committee.clear();
    open_scripts(files, archives, obstacle.empty() ? "" : " (" + obstacle + ")");
  }
  if (backend != "auto") return "";
  return " (auto: " + (native ? "float32 on the CPU" : obstacle) + ")";
}

void PairMLFFStudent::open_scripts(const std::vector<std::string> &files,
                                   const std::vector<std::string> &archives,
                                   const std::string &why) {
  if (comm->nprocs > 1)
    error->all(FLERR,
               "pair_style mlff_student: backend portable{} runs on one MPI rank, found {}; use "
               "backend native, with a float32 archive on device cpu, or start lmp without mpiexec",
               why, comm->nprocs);
  const char *reason = "";
  const TorchBackend *torch = open_torch_backend(&reason);
  if (!torch)
    error->all(FLERR,
               "pair_style mlff_student: backend portable{} needs torch: {}. Use backend native, "
               "with a float32 archive on device cpu, or build the plugin again in a Python "
               "environment with torch: `mlff-student doctor` prints the command",
               why, reason);
  for (std::size_t k = 0; k < files.size(); k++) {
    void *script =
        torch->open(files[k].c_str(), archives[k].data(), archives[k].size(), device.c_str());
    if (!script) error->all(FLERR, "pair_style mlff_student: {}", torch->error());
    committee.emplace_back(torch, script);
  }
}

void PairMLFFStudent::map_types(int narg, char **arg) {
  const int ntypes = atom->ntypes;
  if (narg != ntypes)
    error->all(
        FLERR,
        "pair_coeff of mlff_student names {} elements, but there are {} atom types; name one "
        "element for each type, in order",
        narg, ntypes);
  if (!allocated) {
    memory->create(setflag, ntypes + 1, ntypes + 1, "pair:setflag");
    memory->create(cutsq, ntypes + 1, ntypes + 1, "pair:cutsq");
    allocated = 1;
  }
  number_of_type.assign(ntypes + 1, 0);
  for (int type = 1; type <= ntypes; type++) {
    const std::string element = arg[type - 1];
    if (element == "NULL") {
      if (!utils::strmatch(force->pair_style, "^hybrid"))
        error->all(FLERR,
                   "pair_coeff of mlff_student maps atom type {} to NULL; name its element, or use "
                   "pair_style hybrid to give the type another potential",
                   type);
      continue;
    }
    number_of_type[type] = atomic_number(element.c_str());
    for (const auto &member : committee)
      if (const auto &known = member.elements;
          std::find(known.begin(), known.end(), element) == known.end())
        error->all(
            FLERR,
            "element '{}' of atom type {} is unknown to model {}, which knows {}; take a model "
            "trained on it, or correct the order of elements",
            element, type, member.facts.name, join(known));
  }
  for (int i = 1; i <= ntypes; i++)
    for (int j = 1; j <= ntypes; j++)
      setflag[i][j] = i <= j && number_of_type[i] && number_of_type[j];
}

void PairMLFFStudent::init_style() {
  if (!force->newton_pair)
    error->all(FLERR, "pair_style mlff_student needs newton_pair on, found off; use: newton on");
  if (!modify->get_compute_by_style("^heat/flux").empty())
    error->all(
        FLERR,
        "compute heat/flux needs the stress of each atom's own energy, which pair_style "
        "mlff_student does not compute; use a method that imposes the flux, such as fix ehex "
        "or fix thermal/conductivity");
  neighbor->add_request(this, NeighConst::REQ_FULL);

  // Comm makes buffers of the sizes of the top-level style. Style hybrid set its sizes before
  // pair_coeff, so they are set again here.
  force->pair->comm_forward = std::max(force->pair->comm_forward, comm_forward);
  force->pair->comm_reverse = std::max(force->pair->comm_reverse, comm_reverse);
}

void PairMLFFStudent::setup() {
  if (list->ijskip) // set when the list is built, which is after init_list
    for (int i = 1; i <= atom->ntypes; i++)
      for (int j = i; j <= atom->ntypes; j++)
        if (number_of_type[i] && number_of_type[j] && list->ijskip[i][j])
          error->all(FLERR,
                     "pair_coeff {} {} takes pairs from pair_style mlff_student, which needs all "
                     "pairs of its types; remove that line, or use pair_style hybrid/overlay",
                     i, j);
  for (const auto &fix : modify->get_fix_list())
    if (comm->me == 0 &&
        (utils::strmatch(fix->style, "^gcmc") || utils::strmatch(fix->style, "^widom")))
      error->warning(FLERR,
                     "fix {} {}: an isolated molecule has an energy other than zero in pair_style "
                     "mlff_student. Set intra_energy to it, or, without mol, add the energy of an "
                     "isolated atom to the chemical potential",
                     fix->id, fix->style);
}

// Stops the run on all ranks if LAMMPS leaves pairs of the student's atoms out of the neighbor
// list. To be called when the list is new: bonds and exclusions may come at any step.
void PairMLFFStudent::require_all_neighbors() {
  // Monte Carlo fixes put the atoms of a trial deletion into a group of such a name.
  deleted_bits = 0;
  for (int k = 0; k < 32; k++) // one for each bit of a mask; deleted groups have no name
    if (group->names[k] && utils::strmatch(group->names[k], "^Fix.*_exclusion_group:"))
      deleted_bits |= group->bitmask[k];

  const int *flag = neighbor->special_flag; // 0: LAMMPS removes these special neighbors
  const bool special =
      atom->molecular != Atom::ATOMIC && (flag[1] == 0 || flag[2] == 0 || flag[3] == 0);
  const int include = neighbor->includegroup, border = BorderGroup::of(comm);
  if (!special && !neighbor->exclude && !include && !border) return;
  Removal removal;
  if (special) removal = removed_by_special_bonds();
  if (!removal.rule && include) removal = outside_group(include, INCLUDE);
  if (!removal.rule && border) removal = outside_group(border, BORDER);
  if (!removal.rule && neighbor->exclude) removal = removed_by_exclude();

  // All ranks take part, and the one with the largest number has its atoms named.
  struct {
    int rule, rank;
  } mine{removal.rule, comm->me}, worst;
  MPI_Allreduce(&mine, &worst, 1, MPI_2INT, MPI_MAXLOC, world);
  if (worst.rule == NONE) return;
  tagint ids[2] = {removal.first, removal.second};
  MPI_Bcast(ids, 2, MPI_LMP_TAGINT, worst.rank, world);
  const std::string whose = ids[0] == ids[1] ? fmt::format("atom {}", ids[0])
                                             : fmt::format("atoms {} and {}", ids[0], ids[1]);
  error->all(FLERR, "{}, here of {}, which pair_style mlff_student needs; {}",
             name_of_rule(worst.rule), whose, remedy(worst.rule));
}

// Finds two special neighbors that both are atoms of the student.
PairMLFFStudent::Removal PairMLFFStudent::removed_by_special_bonds() const {
  for (int i = 0; i < atom->nlocal; i++) {
    if (!is_present(i)) continue;
    if (atom->molecular == Atom::TEMPLATE) {
      if (atom->molindex[i] >= 0) return {TEMPLATE, atom->tag[i], atom->tag[i]};
      continue;
    }
    for (int kind = 1, k = 0; kind <= 3; kind++)
      for (; k < atom->nspecial[i][kind - 1]; k++) {
        const int j = neighbor->special_flag[kind] == 0 ? atom->map(atom->special[i][k]) : -1;
        if (j >= 0 && is_present(j)) return {kind, atom->tag[i], atom->tag[j]};
      }
  }
  return {};
}

// Finds an atom of the student outside the group to which neighbor lists or ghosts are restricted.
PairMLFFStudent::Removal PairMLFFStudent::outside_group(int which, int rule) const {
  const int bit = group->bitmask[which];
  for (int i = 0; i < atom->nlocal; i++)
    if (is_present(i) && !(atom->mask[i] & bit)) return {rule, atom->tag[i], atom->tag[i]};
  return {};
}

// Finds two atoms of the student that are neighbors by their distance, but excluded. The conditions
// are those of NPair::exclusion.
PairMLFFStudent::Removal PairMLFFStudent::removed_by_exclude() const {
  const int *type = atom->type, *mask = atom->mask;
  const double reach = cutoff + neighbor->skin;
  Removal removal;
  int rule = EXCLUDE;
  const auto search = [&](auto &&is_first, auto &&is_second, auto &&is_removed) {
    std::vector<int> first, second;
    for (int row = 0; row < atom->nlocal + atom->nghost; row++) {
      if (!is_present(row)) continue;
      if (is_first(row)) first.push_back(row);
      if (is_second(row)) second.push_back(row);
    }
    for (const int i : first)
      for (const int j : second) {
        if (i == j || std::min(i, j) >= atom->nlocal || !is_removed(i, j)) continue;
        double squared = 0.0;
        for (int a = 0; a < 3; a++) squared += std::pow(atom->x[i][a] - atom->x[j][a], 2);
        if (squared < reach * reach) removal = {rule, atom->tag[i], atom->tag[j]};
        if (removal.rule) return;
      }
    rule++;
  };
  const auto always = [](int, int) { return true; };
  for (int k = 0; k < neighbor->nex_type && !removal.rule; k++)
    search([&](int row) { return type[row] == neighbor->ex1_type[k]; },
           [&](int row) { return type[row] == neighbor->ex2_type[k]; }, always);
  for (int k = 0; k < neighbor->nex_group && !removal.rule; k++)
    search([&](int row) { return mask[row] & neighbor->ex1_bit[k]; },
           [&](int row) { return mask[row] & neighbor->ex2_bit[k]; }, always);
  for (int k = 0; k < neighbor->nex_mol && !removal.rule; k++) {
    const auto is_member = [&](int row) { return mask[row] & neighbor->ex_mol_bit[k]; };
    search(is_member, is_member, [&](int i, int j) {
      return (atom->molecule[i] == atom->molecule[j]) == (neighbor->ex_mol_intra[k] != 0);
    });
  }
  return removal;
}

std::string PairMLFFStudent::name_of_rule(int rule) const {
  if (rule < TEMPLATE) return fmt::format("special_bonds removes 1-{} neighbors", rule + 1);
  if (rule == TEMPLATE)
    return "special_bonds removes neighbors that are bonded in a molecule template";
  if (rule == INCLUDE)
    return fmt::format("neigh_modify include {} removes neighbors",
                       group->names[neighbor->includegroup]);
  if (rule == BORDER)
    return fmt::format("comm_modify group {} removes ghost atoms",
                       group->names[BorderGroup::of(comm)]);
  std::string what;
  int k = rule - EXCLUDE;
  if (k < neighbor->nex_type) {
    what = fmt::format("type {} {}", neighbor->ex1_type[k], neighbor->ex2_type[k]);
  } else if ((k -= neighbor->nex_type) < neighbor->nex_group) {
    what = fmt::format("group {} {}", group->names[neighbor->ex1_group[k]],
                       group->names[neighbor->ex2_group[k]]);
  } else {
    k -= neighbor->nex_group;
    what = fmt::format("molecule/{} {}", neighbor->ex_mol_intra[k] ? "intra" : "inter",
                       group->names[neighbor->ex_mol_group[k]]);
  }
  return fmt::format("neigh_modify exclude {} removes neighbors", what);
}

std::string PairMLFFStudent::remedy(int rule) const {
  if (rule == INCLUDE) return "use: neigh_modify include all";
  if (rule == BORDER) return "use: comm_modify group all";
  if (rule >= EXCLUDE)
    return "use: neigh_modify exclude none, or exclude only atoms of other pair styles";
  std::string sources;
  for (const auto &fix : modify->get_fix_list())
    for (const char *style :
         {"^bond/create", "^bond/react", "^bond/swap", "^deposit", "^gcmc", "^pour", "^widom"})
      if (utils::strmatch(fix->style, style))
        sources += fmt::format("fix {} {} adds bonds; ", fix->id, fix->style);
  // Other pair styles need their special_bonds.
  return sources +
         (utils::strmatch(force->pair_style, "^hybrid")
              ? "use: special_bonds with 1.0e-50 instead of 0, which keeps the pairs"
              : "use: special_bonds lj/coul 1 1 1") +
         (rule == TEMPLATE ? ""
                           : ", or remove the bonds among the student's atoms: delete_bonds GROUP "
                             "multi remove special");
}

double PairMLFFStudent::init_one(int i, int j) {
  if (!setflag[std::min(i, j)][std::max(i, j)]) error->all(FLERR, "All pair coeffs are not set");
  return cutoff;
}

void *PairMLFFStudent::extract(const char *name, int &dim) {
  dim = 0;
  return committee.size() > 1 && strcmp(name, "deviation_flag") == 0 ? &deviation_flag : nullptr;
}

void *PairMLFFStudent::extract_peratom(const char *name, int &ncol) {
  ncol = 0;
  return committee.size() > 1 && strcmp(name, "deviation") == 0 ? deviation.data() : nullptr;
}

void PairMLFFStudent::compute(int eflag, int vflag) {
  ev_init(eflag, vflag);
  start_stage(EDGES);
  if (neighbor->ago == 0) require_all_neighbors();
  number_nodes();
  build_edges();
  if (committee.size() == 1 || !(mean || eflag_global || deviation_flag)) {
    evaluate(committee[0], energies, gradient);
  } else {
    energies.assign(list->inum, 0.0);
    gradient.assign(3 * edges, 0.0);
    member_sums.assign(committee.size(), 0.0);
    member_forces.assign(3 * committee.size() * row_of_node.size(), 0.0);
    for (std::size_t member = 0; member < committee.size(); member++) {
      evaluate(committee[member], member_energies, member_gradient);
      start_stage(TALLY);
      add_member(member, mean ? 1.0 / committee.size() : member == 0);
    }
    measure_deviation();
  }
  start_stage(TALLY);
  tally();
  if (vflag_fdotr) virial_fdotr_compute();
  start_stage(OUTSIDE);
  usage.evaluations++;
  // The tables that LAMMPS prints begin with the first step, so the setup is not counted.
  if (update->setupflag) usage = {};
}

// Prints a table of times after a run, in the format of LAMMPS.
void PairMLFFStudent::finish() {
  const Usage mine = usage;
  usage = {};
  if (!mine.evaluations || !timer->has_normal()) return;
  const double *seconds = mine.seconds.data();
  double least[OUTSIDE], most[OUTSIDE], average[OUTSIDE], sum = 0.0;
  MPI_Reduce(seconds, least, OUTSIDE, MPI_DOUBLE, MPI_MIN, 0, world);
  MPI_Reduce(seconds, most, OUTSIDE, MPI_DOUBLE, MPI_MAX, 0, world);
  MPI_Reduce(seconds, average, OUTSIDE, MPI_DOUBLE, MPI_SUM, 0, world);
  const double counts[4] = {double(mine.swaps), double(mine.swapped_bytes), double(mine.messages),
                            double(mine.sent_bytes)};
  double all[4];
  MPI_Reduce(counts, all, 4, MPI_DOUBLE, MPI_SUM, 0, world);
  if (comm->me > 0) return;
  std::string text = "\nPair style mlff_student time breakdown:\n"
                     "Section  |  min time  |  avg time  |  max time  |  %pair\n"
                     "--------------------------------------------------------\n";
  for (double &value : average) sum += value /= comm->nprocs;
  const char *names[OUTSIDE] = {"Edges", "Model", "Exchange", "Tally"};
  for (int k = 0; k < OUTSIDE; k++)
    text += fmt::format("{:<8} | {:<10.5g} | {:<10.5g} | {:<10.5g} | {:6.2f}\n", names[k], least[k],
                        average[k], most[k], 100.0 * average[k] / sum);
  const double steps = static_cast<double>(mine.evaluations) * comm->nprocs;
  text += fmt::format("Exchanged per evaluation and rank: {:.6g} swaps of {:.8g} bytes in all, of "
                      "these {:.6g} messages of {:.8g} bytes to other ranks\n",
                      all[0] / steps, all[1] / steps, all[2] / steps, all[3] / steps);
  utils::logmesg(lmp, text);
}

double PairMLFFStudent::memory_usage() {
  const auto bytes = [](const auto &...vectors) {
    return (0.0 + ... + static_cast<double>(vectors.capacity() * sizeof(vectors[0])));
  };
  return Pair::memory_usage() + static_cast<double>(mlff_student_workspace_bytes(work.get())) +
         bytes(node_of_row, row_of_node, owner_of_row, atomic_numbers, first_edge, senders, vectors,
               energies, gradient, edge_index, member_energies, member_gradient, member_forces,
               deviation);
}

void PairMLFFStudent::number_nodes() {
  const int nlocal = atom->nlocal, nall = nlocal + atom->nghost;
  node_of_row.assign(nall, -1);
  row_of_node.assign(list->ilist, list->ilist + list->inum);
  for (int row = nlocal; row < nall; row++)
    if (number_of_type[atom->type[row]]) row_of_node.push_back(row);
  atomic_numbers.resize(row_of_node.size());
  for (std::size_t node = 0; node < row_of_node.size(); node++) {
    node_of_row[row_of_node[node]] = static_cast<int>(node);
    atomic_numbers[node] = number_of_type[atom->type[row_of_node[node]]];
  }
  if (native) return;
  owner_of_row = node_of_row;
  exchange = Exchange::OWNERS;
  forward_exchange(1);
}

// Ends the current stage and starts another; the time is added to the stage that ends.
void PairMLFFStudent::start_stage(Stage next) {
  const auto now = std::chrono::steady_clock::now();
  usage.seconds[stage] += std::chrono::duration<double>(now - stage_began).count();
  stage = next;
  stage_began = now;
}

void PairMLFFStudent::forward_exchange(int size) {
  const Stage before = stage;
  start_stage(EXCHANGE);
  const int largest = std::exchange(comm_forward, size);
  comm->forward_comm(this); // LAMMPS of 2024 takes the size from `comm_forward` alone
  comm_forward = largest;
  start_stage(before);
}

void PairMLFFStudent::reverse_exchange(int size) {
  const Stage before = stage;
  start_stage(EXCHANGE);
  const int largest = std::exchange(comm_reverse, size);
  comm->reverse_comm(this);
  comm_reverse = largest;
  start_stage(before);
}

// Counts a swap. If the swap is with the rank itself, `buf` is the buffer that was packed;
// otherwise it is the buffer of a message.
void PairMLFFStudent::count_swap(const double *buf, std::size_t doubles) {
  if (doubles == 0) return;
  const auto bytes = static_cast<int64_t>(doubles * sizeof(double));
  usage.swaps++;
  usage.swapped_bytes += bytes;
  if (buf == packed) return;
  usage.messages++;
  usage.sent_bytes += bytes;
}

void PairMLFFStudent::build_edges() {
  const double *const *x = atom->x;
  const double cutoff_squared = cutoff * cutoff;
  int64_t candidates = 0;
  for (int node = 0; node < list->inum; node++) candidates += list->numneigh[list->ilist[node]];
  first_edge.resize(list->inum + 1);
  senders.resize(candidates);
  vectors.resize(3 * candidates);
  edges = first_edge[0] = 0;
  for (int node = 0; node < list->inum; node++) {
    const int i = list->ilist[node];
    const int neighbors = is_deleted(i) ? 0 : list->numneigh[i];
    for (int k = 0; k < neighbors; k++) {
      const int j = list->firstneigh[i][k] & NEIGHMASK;
      if (is_deleted(j)) continue;
      const double r[3] = {x[j][0] - x[i][0], x[j][1] - x[i][1], x[j][2] - x[i][2]};
      const double distance_squared = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
      if (distance_squared >= cutoff_squared) continue;
      if (distance_squared < COINCIDENCE * COINCIDENCE)
        error->one(FLERR,
                   "pair_style mlff_student: atoms {} and {} coincide ({:.3} angstrom apart) at "
                   "step {}; remove one of them, for instance with delete_atoms overlap",
                   atom->tag[i], atom->tag[j], std::sqrt(distance_squared), update->ntimestep);
      senders[edges] = node_of_row[j];
      std::copy_n(r, 3, &vectors[3 * edges]);
      edges++;
    }
    first_edge[node + 1] = edges;
  }
}

// Computes the energies of one member in eV and their gradient by the edge vectors in eV/angstrom.
void PairMLFFStudent::evaluate(const Member &member, std::vector<double> &energies,
                               std::vector<double> &gradient) {
  energies.resize(list->inum);
  gradient.resize(3 * edges);
  start_stage(MODEL);
  try {
    if (native)
      evaluate_native(member, energies.data(), gradient.data());
    else
      evaluate_portable(member, energies.data(), gradient.data());
  } catch (const std::exception &failure) {
    error->one(FLERR, "pair_style mlff_student: model {} failed at step {} ({})", member.facts.name,
               update->ntimestep, failure.what());
  }
  for (int node = 0; node < list->inum; node++)
    if (is_deleted(list->ilist[node])) energies[node] = 0.0;
}

// Every rank takes part in every exchange, even if it has no atoms.
void PairMLFFStudent::evaluate_native(const Member &member, double *energies, double *gradient) {
  const mlff_student_model *model = member.model.get();
  check(mlff_student_begin(model, work.get(), threads ? threads : comm->nthreads,
                           static_cast<int64_t>(row_of_node.size()), list->inum,
                           atomic_numbers.data(), first_edge.data(), senders.data(),
                           vectors.data()));
  channels = member.facts.channels;
  const int size = static_cast<int>(packed_size(channels));
  // Before the first layer the features depend on the type alone, so ghosts have theirs already.
  for (depth = 0; depth < member.facts.layers; depth++) {
    exchange = Exchange::FEATURES;
    if (depth > 0) forward_exchange(size);
    check(mlff_student_forward(model, work.get(), depth));
  }
  check(mlff_student_readout(model, work.get()));
  for (depth = member.facts.layers; depth-- > 0;) {
    check(mlff_student_adjoint(model, work.get(), depth));
    exchange = Exchange::GRADIENTS;
    if (depth > 0) reverse_exchange(size);
  }
  check(mlff_student_finish(model, work.get(), energies, gradient));
}

// A ghost is replaced by the atom whose image it is, so that atom must be on this rank.
void PairMLFFStudent::evaluate_portable(const Member &member, double *energies, double *gradient) {
  if (list->inum == 0) return;
  edge_index.resize(2 * edges);
  for (int node = 0; node < list->inum; node++)
    for (int64_t edge = first_edge[node]; edge < first_edge[node + 1]; edge++) {
      edge_index[edge] = node;
      edge_index[edges + edge] = owner_of_row[row_of_node[senders[edge]]];
    }
  if (!member.torch->evaluate_edges(member.script.get(), threads ? threads : comm->nthreads,
                                    list->inum, atomic_numbers.data(), edges, edge_index.data(),
                                    vectors.data(), energies, gradient))
    throw std::runtime_error(member.torch->error());
}

int PairMLFFStudent::pack_forward_comm(int n, int *rows, double *buf, int, int *) {
  packed = buf;
  if (exchange == Exchange::OWNERS) {
    for (int k = 0; k < n; k++) buf[k] = owner_of_row[rows[k]];
    return n;
  }
  const mlff_student_features state = mlff_student_features_of(work.get(), depth);
  const std::size_t size = packed_size(channels);
  for (int k = 0; k < n; k++) {
    const int64_t node = node_of_row[rows[k]];
    if (node >= 0)
      pack(&state.q[node * channels], &state.mu[3 * node * channels], channels, buf + k * size);
    else
      std::fill_n(buf + k * size, size, 0.0);
  }
  return n * static_cast<int>(size);
}

void PairMLFFStudent::unpack_forward_comm(int n, int first, double *buf) {
  count_swap(buf, n * (exchange == Exchange::OWNERS ? 1 : packed_size(channels)));
  if (exchange == Exchange::OWNERS) {
    for (int k = 0; k < n; k++) owner_of_row[first + k] = static_cast<int>(buf[k]);
    return;
  }
  const mlff_student_features state = mlff_student_features_of(work.get(), depth);
  for (int k = 0; k < n; k++) {
    const int64_t node = node_of_row[first + k];
    if (node < 0) continue;
    const double *from = buf + k * packed_size(channels);
    std::memcpy(&state.q[node * channels], from, channels * sizeof(float));
    std::memcpy(&state.mu[3 * node * channels], from + channels / 2, 3 * channels * sizeof(float));
  }
}

int PairMLFFStudent::pack_reverse_comm(int n, int first, double *buf) {
  packed = buf;
  const std::size_t size =
      exchange == Exchange::FORCES ? 3 * committee.size() : packed_size(channels);
  mlff_student_features state{};
  if (exchange != Exchange::FORCES) state = mlff_student_features_of(work.get(), depth);
  for (int k = 0; k < n; k++) {
    const int64_t node = node_of_row[first + k];
    double *to = buf + k * size;
    if (node < 0)
      std::fill_n(to, size, 0.0);
    else if (exchange == Exchange::FORCES)
      std::copy_n(&member_forces[node * size], size, to);
    else
      pack(state.g_q + node * channels, state.g_mu + 3 * node * channels, channels, to);
  }
  return n * static_cast<int>(size);
}

void PairMLFFStudent::unpack_reverse_comm(int n, int *rows, double *buf) {
  const std::size_t size =
      exchange == Exchange::FORCES ? 3 * committee.size() : packed_size(channels);
  count_swap(buf, n * size);
  mlff_student_features state{};
  if (exchange != Exchange::FORCES) state = mlff_student_features_of(work.get(), depth);
  for (int k = 0; k < n; k++) {
    const int64_t node = node_of_row[rows[k]];
    const double *from = buf + k * size;
    if (node < 0) continue;
    if (exchange == Exchange::FORCES)
      for (std::size_t c = 0; c < size; c++) member_forces[node * size + c] += from[c];
    else
      add_packed(from, channels, state.g_q + node * channels, state.g_mu + 3 * node * channels);
  }
}

// Adds energies, forces and virials to LAMMPS's arrays. Both atoms of an edge receive a force, and
// LAMMPS adds the forces of ghosts to their atoms. Each atom receives half of the virial of an
// edge.
void PairMLFFStudent::tally() {
  double **f = atom->f;
  double checksum = 0.0; // not finite if any energy or force is not finite

  for (int node = 0; node < list->inum; node++) {
    const int i = list->ilist[node];
    const double energy = ev_to_energy * energies[node];
    checksum += energy;
    if (eflag_global) eng_vdwl += energy;
    if (eflag_atom) eatom[i] += energy;

    for (int64_t edge = first_edge[node]; edge < first_edge[node + 1]; edge++) {
      const int j = row_of_node[senders[edge]];
      const double *r = &vectors[3 * edge];
      double g[3];
      for (int a = 0; a < 3; a++) {
        g[a] = ev_to_energy * gradient[3 * edge + a];
        f[i][a] += g[a];
        f[j][a] -= g[a];
        checksum += g[a];
      }
      if (!vflag_either) continue;

      // xx yy zz xy xz yz yx zx zy: the component of r first, then the component of the force
      const double w[9] = {-r[0] * g[0], -r[1] * g[1], -r[2] * g[2], -r[0] * g[1], -r[0] * g[2],
                           -r[1] * g[2], -r[1] * g[0], -r[2] * g[0], -r[2] * g[1]};
      for (int c = 0; c < 6; c++) {
        // With a many-body energy the tensor of an edge is not symmetric; only the sum is.
        const double symmetric = c < 3 ? w[c] : 0.5 * (w[c] + w[c + 3]);
        if (vflag_global) virial[c] += symmetric;
        if (vflag_atom) {
          vatom[i][c] += 0.5 * symmetric;
          vatom[j][c] += 0.5 * symmetric;
        }
      }
      if (cvflag_atom)
        for (int c = 0; c < 9; c++) {
          cvatom[i][c] += 0.5 * w[c];
          cvatom[j][c] += 0.5 * w[c];
        }
    }
  }

  if (!std::isfinite(checksum))
    error->one(FLERR,
               "pair_style mlff_student: energy or forces are not finite at step {}; check "
               "whether the timestep is too long, or the structure unlike the training data",
               update->ntimestep);
}

// Adds the energies and gradient of one member of the committee to the weighted sum.
void PairMLFFStudent::add_member(std::size_t member, double weight) {
  const std::size_t members = committee.size();
  for (int node = 0; node < list->inum; node++) {
    energies[node] += weight * member_energies[node];
    member_sums[member] += member_energies[node];
    double *own = &member_forces[3 * (node * members + member)];
    for (int64_t edge = first_edge[node]; edge < first_edge[node + 1]; edge++) {
      double *other = &member_forces[3 * (senders[edge] * members + member)];
      for (int a = 0; a < 3; a++) {
        const double g = member_gradient[3 * edge + a];
        gradient[3 * edge + a] += weight * g;
        own[a] += g;
        other[a] -= g;
      }
    }
  }
}

// Computes standard deviations over the committee: sqrt(<|F - <F>|^2>) of the force on each atom,
// as in arXiv:1910.12690, and the standard deviation of the energy.
void PairMLFFStudent::measure_deviation() {
  const std::size_t members = committee.size();
  exchange = Exchange::FORCES;
  reverse_exchange(static_cast<int>(3 * members));

  deviation.assign(atom->nlocal + 1, 0.0); // fix pair reads a null pointer as an unknown name
  double largest = 0.0;
  // The energies of the members, the sum of the deviations, and the number of atoms.
  std::vector<double> sums(member_sums);
  sums.push_back(0.0);
  sums.push_back(list->inum);
  for (int node = 0; node < list->inum; node++) {
    const double *forces = &member_forces[3 * node * members];
    double squares = 0.0;
    for (int a = 0; a < 3; a++) {
      double average = 0.0;
      for (std::size_t m = 0; m < members; m++) average += forces[3 * m + a] / members;
      for (std::size_t m = 0; m < members; m++)
        squares += (forces[3 * m + a] - average) * (forces[3 * m + a] - average) / members;
    }
    const double value = ev_to_energy * std::sqrt(squares);
    deviation[list->ilist[node]] = value;
    largest = std::max(largest, value);
    sums[members] += value;
  }
  MPI_Allreduce(MPI_IN_PLACE, &largest, 1, MPI_DOUBLE, MPI_MAX, world);
  MPI_Allreduce(MPI_IN_PLACE, sums.data(), static_cast<int>(sums.size()), MPI_DOUBLE, MPI_SUM,
                world);
  double average = 0.0, squares = 0.0;
  for (std::size_t m = 0; m < members; m++) average += sums[m] / members;
  for (std::size_t m = 0; m < members; m++)
    squares += (sums[m] - average) * (sums[m] - average) / members;
  // compute pair adds up the values of all ranks, so the other ranks have zero.
  const double values[3] = {largest, sums[members] / std::max(1.0, sums[members + 1]),
                            ev_to_energy * std::sqrt(squares)};
  for (int k = 0; k < 3; k++) pvector[k] = comm->me == 0 ? values[k] : 0.0;
}
