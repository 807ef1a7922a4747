// Tests that several threads use a model at once, that a call of several threads gives the same
// bits, and that a process that was forked after such a call still computes. Exit status 1: numbers
// differ; 2: a call failed. The argument is the number of threads inside a call.
#include "random_weights.h"

#include <cstdio>
#include <cstdlib>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace {

constexpr int64_t ATOMS = 200; // several pieces of work
constexpr double EDGE = 12.0, CUTOFF = 4.0;

struct Job {
  std::vector<double> positions, answer; // the answer has energies, then forces, then virials
};

void evaluate(const mlff_student_model *model, mlff_student_workspace *work, int threads,
              Job &job) {
  std::vector<int64_t> numbers;
  for (int64_t i = 0; i < ATOMS; i++) numbers.push_back(1 + i % 3);
  const double cell[9] = {EDGE, 0, 0, 1.0, EDGE, 0, 0, 0, EDGE};
  job.answer.assign(13 * ATOMS, 0.0);
  double *out = job.answer.data();
  const mlff_student_system system = {ATOMS, job.positions.data(), numbers.data(), cell, nullptr};
  const mlff_student_results results = {out, out + ATOMS, nullptr, out + 4 * ATOMS};
  if (mlff_student_evaluate(model, work, threads, &system, &results)) {
    std::printf("%s\n", mlff_student_error());
    std::exit(2);
  }
}

} // namespace

int main(int count, char **arguments) {
  const int inside = count > 1 ? std::atoi(arguments[1]) : 1;
  std::mt19937 random(3);
  std::uniform_real_distribution<double> place(0.0, EDGE);
  auto *model = model_of(random_weights(32, 2, 8, random), CUTOFF);
  std::vector<Job> jobs(4);
  auto *work = mlff_student_new_workspace();
  for (Job &job : jobs) {
    for (int64_t k = 0; k < 3 * ATOMS; k++) job.positions.push_back(place(random));
    evaluate(model, work, 1, job);
  }
  std::vector<Job> again = jobs;
  for (int round = 0; round < 3; round++) {
    std::vector<std::thread> users;
    for (Job &job : again)
      users.emplace_back([&job, model, inside] {
        auto *own = mlff_student_new_workspace();
        evaluate(model, own, inside, job);
        mlff_student_evaluate(model, own, 0, nullptr, nullptr); // an error of this thread alone
        mlff_student_free_workspace(own);
      });
    for (std::thread &user : users) user.join();
    for (std::size_t k = 0; k < jobs.size(); k++)
      if (again[k].answer != jobs[k].answer) return 1;
  }
  if (*mlff_student_error()) return 1;

  evaluate(model, work, inside, again[0]);
  const pid_t child = fork();
  if (child == 0) {
    evaluate(model, work, inside, again[0]);
    _exit(again[0].answer == jobs[0].answer ? 0 : 1);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) return 2;
  mlff_student_free_workspace(work);
  mlff_student_close(model);
  return WEXITSTATUS(status);
}
