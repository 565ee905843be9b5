// Tasks on the threads that torch already has.
//
// The calls are libgomp's own entry points, left undefined here and found in the runtime that
// torch has loaded: no compiler flag, no dependency of this library, and never a second pool.
#pragma once

#include <cstdint>

extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num(void);
int omp_get_num_threads(void);
}

namespace mbconv {

// f(task, thread) for each task of 0..tasks-1, in consecutive runs. What a task computes must not
// depend on its thread: then results are the same bits for any number of threads.
template <class F>
void parallel(int64_t tasks, int threads, F&& f) {
    if (tasks < threads) threads = static_cast<int>(tasks);
    if (threads <= 1) {
        for (int64_t task = 0; task < tasks; ++task) f(task, 0);
        return;
    }
    struct Work {
        F& f;
        int64_t tasks;
    } work{f, tasks};
    GOMP_parallel(
        [](void* data) {
            auto& w = *static_cast<Work*>(data);
            const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
            for (int64_t t = w.tasks * me / all; t < w.tasks * (me + 1) / all; ++t)
                w.f(t, static_cast<int>(me));
        },
        &work, threads, 0);
}

}  // namespace mbconv
