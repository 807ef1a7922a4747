// This program runs the system of this folder without Python. It needs OpenMM, TorchForce and
// libtorch. To compile and run it:
//
//   g++ -std=c++17 simulate.cpp -o simulate -I$OPENMM/include -L$OPENMM/lib \
//       -lOpenMM -lOpenMMTorch -ldl -Wl,--allow-shlib-undefined
//   export OPENMM_PLUGIN_DIR=$OPENMM/lib/plugins LD_LIBRARY_PATH=$OPENMM/lib:$TORCH/lib
//   ./simulate 1000
//
// OPENMM is the folder where OpenMM is installed, and TORCH the folder of libtorch. With wheels
// from pip they are site-packages/OpenMM.libs and site-packages/torch, and LD_LIBRARY_PATH must
// also contain site-packages/nvidia/cuda_nvrtc/lib. If student.pt was written for the native
// kernels, set MLFF_STUDENT_NATIVE to the path of libmlff_student_torch.so.

#include <OpenMM.h>
#include <dlfcn.h>
#include <openmm/serialization/XmlSerializer.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>

#if __has_include(<TorchForce.h>)
#include <TorchForce.h>
#else // The wheel of openmmtorch 1.5 has no header. This declares the members that are used here.
namespace TorchPlugin {
class TorchForce : public OpenMM::Force {
public:
  TorchForce(const std::string &file, const std::map<std::string, std::string> &properties = {});
  void setOutputsForces(bool outputs);
  void setUsesPeriodicBoundaryConditions(bool periodic);
  bool usesPeriodicBoundaryConditions() const override;

protected:
  OpenMM::ForceImpl *createImpl() const override;

private:
  alignas(16) char members[1024]; // larger than the members of the class in the library
};
} // namespace TorchPlugin
#endif

constexpr bool periodic = PERIODIC; // whether the system has a box

template <class T> std::unique_ptr<T> read(const char *path) {
  std::ifstream file(path);
  return std::unique_ptr<T>(OpenMM::XmlSerializer::deserialize<T>(file));
}

int run(int steps) {
  using namespace OpenMM;
  const char *operators = std::getenv("MLFF_STUDENT_OPERATORS");
  if (operators && !dlopen(operators, RTLD_NOW)) throw std::runtime_error(dlerror());
  Platform::loadPluginsFromDirectory(Platform::getDefaultPluginsDirectory());

  auto system = read<System>("system.xml");
  auto student = new TorchPlugin::TorchForce("student.pt");
  student->setOutputsForces(true);
  student->setUsesPeriodicBoundaryConditions(periodic);
  system->addForce(student); // the system owns the force from now on

  LangevinMiddleIntegrator integrator(300.0, 1.0, 0.0005); // K, 1/ps, ps
  Context context(*system, integrator);
  context.setState(*read<State>("start.xml"));
  State start = context.getState(State::Energy | State::Forces);
  double largest = 0.0;
  for (const Vec3 &force : start.getForces())
    largest = std::max(largest, std::sqrt(force.dot(force)));
  std::cout.precision(12);
  std::cout << "start: " << start.getPotentialEnergy() << " kJ/mol, largest force " << largest
            << " kJ/mol/nm" << std::endl;

  LocalEnergyMinimizer::minimize(context);
  context.setVelocitiesToTemperature(300.0);
  integrator.step(steps);
  double energy = context.getState(State::Energy).getPotentialEnergy();
  std::cout << "after " << steps << " steps: " << energy << " kJ/mol" << std::endl;
  return 0;
}

int main(int count, char **arguments) {
  try {
    return run(count > 1 ? std::stoi(arguments[1]) : 100);
  } catch (const std::exception &error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
