// libtorch names these types in declarations that are not used here.
#pragma once
#include "cusolver_common.h"

typedef struct cusolverDnContext* cusolverDnHandle_t;
