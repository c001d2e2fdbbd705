// What is behind the handles of shim.h.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "torch.h"

struct SimclrStore {
  c10::intrusive_ptr<c10d::Store> store;
};

struct SimclrGroup {
  c10::intrusive_ptr<c10d::ProcessGroup> group;

  // Both return when it is done.
  void sum(at::Tensor& tensor) const;
  void gather(at::Tensor& own, at::Tensor& all) const;
};
