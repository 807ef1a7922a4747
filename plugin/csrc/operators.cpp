// Makes students available to torch, as torch.ops.mlff_student.evaluate and from_edges. A student
// is given by the content of its archive, as a tensor of bytes, and by the first 63 bits of the
// SHA-256 of the content. It is opened once, and found by that key in later calls.
#include "mlff_student.h"
#include "sha256.h"
#include "torch_abi.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <list>
#include <memory>
#include <mutex>
#include <sched.h>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

// torch reports what an operator throws as an error of its own; the macro STD_TORCH_CHECK of its
// stable headers throws the same type.
[[noreturn]] void fail(const std::string &reason) {
  throw std::runtime_error("mlff_student: " + reason);
}

void check(int status) {
  if (status != MLFF_STUDENT_OK) fail(mlff_student_error());
}

void check_torch(AOTITorchError status) { // torch has written the reason to stderr
  if (status) fail("torch could not read, make or copy a tensor; its message is above");
}

// --- Tensors ------------------------------------------------------------------------------------

template <class T> int32_t dtype();
template <> int32_t dtype<double>() { return aoti_torch_dtype_float64(); }
template <> int32_t dtype<int64_t>() { return aoti_torch_dtype_int64(); }
template <> int32_t dtype<bool>() { return aoti_torch_dtype_bool(); }
template <> int32_t dtype<uint8_t>() { return aoti_torch_dtype_uint8(); }

using Shape = std::vector<int64_t>;

std::string text_of(const Shape &shape) {
  std::string text = "(";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + ")";
}

// A tensor that this library owns.
class Tensor {
public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle, aoti_torch_delete_tensor_object) {}
  explicit Tensor(StableIValue handle) : Tensor(reinterpret_cast<AtenTensorHandle>(handle)) {}

  Shape shape() const {
    int64_t dimensions, *sizes;
    check_torch(aoti_torch_get_dim(handle_.get(), &dimensions));
    check_torch(aoti_torch_get_sizes(handle_.get(), &sizes));
    return {sizes, sizes + dimensions};
  }
  template <class T> T *data() const {
    void *data;
    check_torch(aoti_torch_get_data_ptr(handle_.get(), &data));
    return static_cast<T *>(data);
  }
  // This tensor if it is a contiguous one of type T on the CPU, or else a copy that is.
  template <class T> Tensor on_cpu() &&;

  StableIValue release() { return reinterpret_cast<StableIValue>(handle_.release()); }

private:
  std::unique_ptr<AtenTensorOpaque, AOTITorchError (*)(AtenTensorHandle)> handle_;
};

template <class T> Tensor empty(const Shape &shape) {
  Shape strides(shape.size(), 1);
  for (std::size_t k = shape.size(); k-- > 1;) strides[k - 1] = strides[k] * shape[k];
  AtenTensorHandle handle;
  check_torch(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                       strides.data(), dtype<T>(), aoti_torch_device_type_cpu(), 0,
                                       &handle));
  return Tensor(handle);
}

template <class T> Tensor Tensor::on_cpu() && {
  int32_t type, device;
  bool contiguous;
  check_torch(aoti_torch_get_dtype(handle_.get(), &type));
  check_torch(aoti_torch_get_device_type(handle_.get(), &device));
  check_torch(aoti_torch_is_contiguous(handle_.get(), &contiguous));
  if (type == dtype<T>() && device == aoti_torch_device_type_cpu() && contiguous)
    return std::move(*this);
  Tensor copy = empty<T>(shape());
  check_torch(aoti_torch_copy_(copy.handle_.get(), handle_.get(), false));
  return copy;
}

// --- Students -----------------------------------------------------------------------------------

constexpr std::size_t MOST_OPEN = 32; // students that are kept open, those of the newest calls

using Workspace = std::unique_ptr<mlff_student_workspace, decltype(&mlff_student_free_workspace)>;

class Student {
public:
  Student(const Tensor &archive, std::size_t size)
      : model_(
            mlff_student_open_memory("the archive of this module", archive.data<uint8_t>(), size),
            mlff_student_close) {
    if (!model_) fail(mlff_student_error());
  }
  const mlff_student_model *model() const { return model_.get(); }

  // A workspace for the time of a call. Simultaneous calls have separate workspaces.
  class Lease {
  public:
    explicit Lease(Student &owner) : owner_(owner), work_(nullptr, mlff_student_free_workspace) {
      {
        const std::lock_guard<std::mutex> lock(owner_.mutex_);
        if (!owner_.free_.empty()) {
          work_ = std::move(owner_.free_.back());
          owner_.free_.pop_back();
          return;
        }
      }
      work_.reset(mlff_student_new_workspace());
      if (!work_) fail(mlff_student_error());
    }
    ~Lease() {
      const std::lock_guard<std::mutex> lock(owner_.mutex_);
      owner_.free_.push_back(std::move(work_));
    }
    mlff_student_workspace *get() const { return work_.get(); }

  private:
    Student &owner_;
    Workspace work_;
  };

private:
  std::unique_ptr<mlff_student_model, decltype(&mlff_student_close)> model_;
  std::mutex mutex_;
  std::vector<Workspace> free_;
};

// The open students, that of the newest call first. No lock is held while a student is opened;
// threads that open one at the same time all get the first.
class Students {
public:
  std::shared_ptr<Student> get(Tensor archive, int64_t key) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (auto open = find(key)) return open;
    }
    const Tensor bytes = std::move(archive).on_cpu<uint8_t>();
    const Shape shape = bytes.shape();
    if (shape.size() != 1)
      fail("the archive has the shape " + text_of(shape) + ", expected (size)");
    mlff_student::Sha256 hash;
    hash.update(bytes.data<uint8_t>(), shape[0]);
    const int64_t found = std::stoull(hash.digest().substr(0, 16), nullptr, 16) >> 1;
    if (found != key)
      fail("the archive of this module has the key " + std::to_string(found) + ", expected " +
           std::to_string(key) + "; the module was changed: write it again");
    auto opened = std::make_shared<Student>(bytes, shape[0]);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (auto first = find(key)) return first;
    open_.emplace_front(key, opened);
    if (open_.size() > MOST_OPEN) open_.pop_back();
    return opened;
  }

private:
  std::shared_ptr<Student> find(int64_t key) { // with the lock
    const auto found = std::find_if(open_.begin(), open_.end(),
                                    [&](const auto &entry) { return entry.first == key; });
    if (found == open_.end()) return nullptr;
    open_.splice(open_.begin(), open_, found);
    return found->second;
  }

  std::mutex mutex_;
  std::list<std::pair<int64_t, std::shared_ptr<Student>>> open_;
};

Students &students() { // never destroyed, since other threads may still run when a process ends
  static Students &all = *new Students;
  return all;
}

// --- Operators ----------------------------------------------------------------------------------

// The threads of a call: those that the module asks for, or else OMP_NUM_THREADS, or else as many
// as the CPUs that this process may use.
int threads_of(int64_t wanted) {
  if (wanted > 0) return static_cast<int>(std::min<int64_t>(wanted, CPU_SETSIZE));
  const char *setting = std::getenv("OMP_NUM_THREADS");
  if (const int threads = setting ? std::atoi(setting) : 0; threads > 0) return threads;
  cpu_set_t cpus;
  return sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
}

void evaluate(StableIValue *stack, uint64_t, uint64_t) {
  Tensor archive(stack[0]), positions(stack[2]), atomic_numbers(stack[3]);
  Tensor cell(stack[4]), pbc(stack[5]);
  const auto key = static_cast<int64_t>(stack[1]), threads = static_cast<int64_t>(stack[6]);
  const Tensor x = std::move(positions).on_cpu<double>();
  const Tensor numbers = std::move(atomic_numbers).on_cpu<int64_t>();
  const Tensor lattice = std::move(cell).on_cpu<double>();
  const Tensor periodic = std::move(pbc).on_cpu<bool>();
  const Shape shape = numbers.shape();
  const int64_t atoms = shape.empty() ? -1 : shape[0];
  if (shape.size() != 1 || x.shape() != Shape{atoms, 3})
    fail("positions and atomic_numbers have the shapes " + text_of(x.shape()) + " and " +
         text_of(shape) + ", expected (N, 3) and (N)");
  if (lattice.shape() != Shape{3, 3} || periodic.shape() != Shape{3})
    fail("cell and pbc have the shapes " + text_of(lattice.shape()) + " and " +
         text_of(periodic.shape()) + ", expected (3, 3) and (3)");
  std::array<int, 3> directions;
  std::copy_n(periodic.data<bool>(), 3, directions.begin());
  const mlff_student_system system{atoms, x.data<double>(), numbers.data<int64_t>(),
                                   lattice.data<double>(), directions.data()};
  Tensor energies = empty<double>({atoms}), forces = empty<double>({atoms, 3});
  Tensor virial = empty<double>({3, 3});
  const mlff_student_results results{energies.data<double>(), forces.data<double>(),
                                     virial.data<double>(), nullptr};
  const auto student = students().get(std::move(archive), key);
  const Student::Lease work(*student);
  check(
      mlff_student_evaluate(student->model(), work.get(), threads_of(threads), &system, &results));
  stack[0] = energies.release();
  stack[1] = forces.release();
  stack[2] = virial.release();
}

void from_edges(StableIValue *stack, uint64_t, uint64_t) {
  Tensor archive(stack[0]), edge_vectors(stack[2]), edge_index(stack[3]), atomic_numbers(stack[4]);
  const auto key = static_cast<int64_t>(stack[1]), local = static_cast<int64_t>(stack[5]);
  const auto threads = static_cast<int64_t>(stack[6]);
  const Tensor vectors = std::move(edge_vectors).on_cpu<double>();
  const Tensor index = std::move(edge_index).on_cpu<int64_t>();
  const Tensor numbers = std::move(atomic_numbers).on_cpu<int64_t>();
  const Shape shape = vectors.shape(), nodes = numbers.shape();
  const int64_t edges = shape.empty() ? -1 : shape[0];
  if (shape != Shape{edges, 3} || index.shape() != Shape{2, edges})
    fail("edge_vectors and edge_index have the shapes " + text_of(shape) + " and " +
         text_of(index.shape()) + ", expected (E, 3) and (2, E)");
  if (nodes.size() != 1 || local < 0 || local > nodes[0])
    fail("n_local is " + std::to_string(local) + " and atomic_numbers has the shape " +
         text_of(nodes) + ", expected (N) and n_local from 0 to N");
  Tensor energies = empty<double>({local}), gradient = empty<double>(shape);
  const auto student = students().get(std::move(archive), key);
  const Student::Lease work(*student);
  check(mlff_student_evaluate_edges(student->model(), work.get(), threads_of(threads), nodes[0],
                                    numbers.data<int64_t>(), edges, index.data<int64_t>(),
                                    vectors.data<double>(), local, energies.data<double>(),
                                    gradient.data<double>()));
  stack[0] = energies.release();
  stack[1] = gradient.release();
}

// Registers the operators when the library is loaded. If that fails, because another copy of the
// library is loaded already, torch writes why to stderr. The library objects of torch are kept,
// since freeing them would remove the operators.
[[maybe_unused]] const bool registered = [] {
  TorchLibraryHandle schemas, functions;
  // The functions accept tensors of every device, and torch records no gradients for them.
  return !(aoti_torch_library_init_fragment("mlff_student", __FILE__, __LINE__, &schemas) ||
           aoti_torch_library_def(
               schemas, "evaluate(Tensor archive, int key, Tensor positions, Tensor "
                        "atomic_numbers, Tensor cell, Tensor pbc, int threads) -> (Tensor, Tensor, "
                        "Tensor)") ||
           aoti_torch_library_def(
               schemas, "from_edges(Tensor archive, int key, Tensor edge_vectors, Tensor "
                        "edge_index, Tensor atomic_numbers, int n_local, int threads) -> (Tensor, "
                        "Tensor)") ||
           aoti_torch_library_init_impl("mlff_student", "CompositeExplicitAutograd", __FILE__,
                                        __LINE__, &functions) ||
           aoti_torch_library_impl(functions, "evaluate", evaluate) ||
           aoti_torch_library_impl(functions, "from_edges", from_edges));
}();

} // namespace
