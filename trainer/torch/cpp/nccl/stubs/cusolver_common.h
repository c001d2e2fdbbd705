// libtorch names these types in declarations that are not used here.
#pragma once
enum cusolverStatus_t : int;
