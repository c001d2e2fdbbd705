// Of gloo's headers, which libtorch's packages lack, c10d's ProcessGroupGloo.hpp needs the names here and beside it only.
#pragma once
