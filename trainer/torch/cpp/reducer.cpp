// torch's Reducer, the heart of DistributedDataParallel: it sends gradients in buckets as soon as they are complete,
// while the backward pass goes on.

#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <ATen/ATen.h>

#include "group.h"

namespace {
// As DistributedDataParallel: a small bucket first, so that sending begins early.
constexpr size_t kFirstBucketBytes = 1 << 20;
constexpr size_t kBucketBytes = 25 << 20;
} // namespace

struct SimclrReducer {
  std::vector<at::Tensor> parameters;
  std::unique_ptr<c10d::Reducer> reducer;

  void prepare() {
    reducer->prepare_for_forward();
    reducer->prepare_for_backward({});
  }

  void clear() {
    for (auto& parameter : parameters) {
      parameter.mutable_grad().reset();
    }
  }
};

extern "C" char* simclr_reducer_open(
    SimclrGroup* group, at::Tensor** parameters, size_t count, SimclrReducer** reducer) {
  return simclr::guard([&] {
    std::vector<at::Tensor> own;
    for (size_t i = 0; i < count; ++i) {
      own.push_back(*parameters[i]);
    }
    std::vector<at::Tensor> reversed(own.rbegin(), own.rend());
    auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(reversed, {kFirstBucketBytes, kBucketBytes});
    for (auto& bucket : buckets) {
      for (auto& index : bucket) {
        index = count - 1 - index;
      }
    }
    auto made = std::make_unique<SimclrReducer>();
    made->parameters = own;
    made->reducer = std::make_unique<c10d::Reducer>(
        own,
        std::move(buckets),
        group->group,
        std::vector<bool>(count, false),
        kBucketBytes,
        /*find_unused_parameters=*/false,
        /*gradient_as_bucket_view=*/true,
        std::unordered_map<size_t, std::string>(),
        kFirstBucketBytes,
        /*skip_all_reduce_unused_params=*/false,
        /*use_python_reducer=*/false,
        std::vector<int64_t>());
    // The reducer orders its buckets anew by the first backward pass that it sees. Let that be one over the parameters
    // as they are listed: then the order, and with it the last bits of sums, is the same before and after a restart.
    at::Tensor nothing = at::zeros({}, own.front().options());
    for (const auto& parameter : own) {
      nothing = nothing + parameter.sum() * 0.0;
    }
    made->prepare();
    nothing.backward();
    made->clear();
    made->reducer->rebuild_buckets();
    *reducer = made.release();
  });
}

extern "C" void simclr_reducer_close(SimclrReducer* reducer) {
  delete reducer;
}

extern "C" char* simclr_reducer_prepare(SimclrReducer* reducer) {
  return simclr::guard([&] { reducer->prepare(); });
}

extern "C" char* simclr_reducer_clear(SimclrReducer* reducer) {
  return simclr::guard([&] { reducer->clear(); });
}
