#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "group.h"

// The class is declared by libtorch's header over gloo's stubs beside this file. A libtorch that was built with another
// layout would say so here.
static_assert(sizeof(c10d::ProcessGroupGloo) == 0x1e8, "this libtorch's ProcessGroupGloo has another layout");

namespace {

// By itself Gloo takes the address that this machine's name has, which need not be one that others, or it, can reach.
c10::intrusive_ptr<c10d::ProcessGroupGloo::Options> gloo_options(
    const std::string& host, std::chrono::milliseconds timeout) {
  using c10d::ProcessGroupGloo;
  auto options = ProcessGroupGloo::Options::create(timeout);
  if (const char* interface = getenv("GLOO_SOCKET_IFNAME")) {
    options->devices.push_back(ProcessGroupGloo::createDeviceForInterface(interface));
  } else if (host == "127.0.0.1" || host == "localhost") {
    options->devices.push_back(ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
  } else {
    options->devices.push_back(ProcessGroupGloo::createDefaultDevice());
  }
  return options;
}

} // namespace

extern "C" char* simclr_group_open(
    SimclrStore* store, const char* host, int rank, int world, int64_t timeout_ms, SimclrMakeBackend nccl,
    SimclrGroup** group) {
  return simclr::guard([&] {
    using c10d::ProcessGroup;
    const auto timeout = std::chrono::milliseconds(timeout_ms);
    auto made = c10::make_intrusive<ProcessGroup>(store->store, rank, world);
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(
        c10::make_intrusive<c10d::PrefixStore>("gloo", store->store),
        rank,
        world,
        gloo_options(host, timeout));
    made->setBackend(c10::DeviceType::CPU, ProcessGroup::BackendType::GLOO, std::optional<c10::intrusive_ptr<c10d::Backend>>(gloo));
    made->setDefaultBackend(ProcessGroup::BackendType::GLOO);
    if (nccl != nullptr) {
      void* raw = nullptr;
      if (char* text = nccl(&store->store, rank, world, timeout_ms, &raw)) {
        const std::string what = text;
        free(text);
        TORCH_CHECK(false, what);
      }
      auto backend = c10::intrusive_ptr<c10d::Backend>::reclaim(static_cast<c10d::Backend*>(raw));
      made->setBackend(c10::DeviceType::CUDA, ProcessGroup::BackendType::NCCL, std::optional<c10::intrusive_ptr<c10d::Backend>>(backend));
    }
    *group = new SimclrGroup{std::move(made)};
  });
}

extern "C" void simclr_group_close(SimclrGroup* group) {
  delete group;
}

void SimclrGroup::sum(at::Tensor& tensor) const {
  std::vector<at::Tensor> tensors{tensor};
  group->allreduce(tensors)->wait();
}

void SimclrGroup::gather(at::Tensor& own, at::Tensor& all) const {
  if (all.is_cuda()) {
    // By a list, NCCL would copy everyone's part once more.
    group->_allgather_base(all, own)->wait();
    return;
  }
  std::vector<std::vector<at::Tensor>> all_of_them{all.unbind(0)};
  std::vector<at::Tensor> owns{own};
  group->allgather(all_of_them, owns)->wait();
}

extern "C" char* simclr_all_reduce(SimclrGroup* group, at::Tensor* tensor) {
  return simclr::guard([&] { group->sum(*tensor); });
}

extern "C" char* simclr_all_gather(SimclrGroup* group, at::Tensor* own, at::Tensor* all) {
  return simclr::guard([&] { group->gather(*own, *all); });
}

extern "C" char* simclr_broadcast(SimclrGroup* group, at::Tensor* tensor, int from) {
  return simclr::guard([&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = from;
    group->group->broadcast(tensors, options)->wait();
  });
}
