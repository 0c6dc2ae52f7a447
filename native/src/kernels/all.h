/* Every kernel, for the BITS and operations that the including file has defined. */
#include "kernels/chacha.h"
#include "kernels/gauss32.h"
#include "kernels/gauss64.h"
#include "kernels/codec.h"
#include "kernels/mask.h"
#include "kernels/norm.h"
#include "kernels/sum.h"
#include "kernels/table.h"
