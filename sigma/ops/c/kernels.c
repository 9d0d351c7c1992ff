// The CPU's kernels on packed rows, for float and double; plain C with the vector extension of GCC
// and Clang, whatever the processor. This file is what is compiled.
//
// A batch is its rows laid end to end: T places, B rows, row b the places offsets[b] to
// offsets[b + 1] - 1. Places from offsets[B] on belong to no row: they are not read, and outputs
// and gradients there are zero. Equations are in reference.py, layouts in inputs.py.
//
// No result depends on the number of threads: sums over rows are taken over parts of the batch that
// the offsets alone decide, and added in order by the caller.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef __has_builtin
#define __has_builtin(name) 0
#endif

#define REAL float
#include "common.h"
#include "scan.c"
#include "conv.c"
#include "gru.c"
#include "attend.c"
#include "attend_back.c"
#undef REAL
#define REAL double
#include "common.h"
#include "scan.c"
#include "conv.c"
#include "gru.c"
#include "attend.c"
#include "attend_back.c"
