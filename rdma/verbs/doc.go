// Package verbs makes rdma.Devices of libibverbs: RNICs that speak RoCEv2, and the
// kernel's Soft-RoCE (rdma_rxe). It needs cgo and the build tag verbs; without
// them every constructor returns ErrNotBuilt. The library itself is loaded when
// the first device is opened, so the binary runs on machines that lack it; there
// Open says what to install.
//
// Devices and ports are found in sysfs, by List, in every build.
//
// # Crossings and memory
//
// PostSend, PostRecv and CQ.Poll make one call into C per list of up to 128
// requests and 64 completions; Go's scheduler takes it for Go code (internal/ccall), so
// that a process whose only P polls and posts keeps it. Work requests, scatter-gather elements and
// completions lie in C memory, payloads in the registered arena: nothing that the
// device reads or writes is in the Go heap, and the steady path does not allocate.
// Payloads up to MaxInline are copied into the work request, whether asked for or
// not: the device has no memory to look up and read for them.
//
// A memory region gets IBV_ACCESS_LOCAL_WRITE, and what peers may do only where
// it was asked for. Remote addresses are addresses of this process.
//
// # Completions
//
// libibverbs leaves the opcode of a failed completion undefined and keeps the
// completions of a destroyed queue pair in the queue. So a work request carries
// the place of its queue pair and of itself, from which Poll restores ID and kind,
// and drops what belongs to a pair that was closed. A send queue's room comes back
// with signalled completions: one request in each SendWRs at least must be
// signalled.
//
// Receives of a shared queue always complete. Those that a closed queue pair took,
// and nobody had polled, come with FlushError and queue pair number 0. All receives of a
// shared queue may complete on one completion queue, which is made deeper for that
// where it must be (ibv_resize_cq).
//
// # Sleeping
//
// Device.FD is an epoll descriptor over the completion channels, one per
// completion queue, and the device's asynchronous events. So arming one queue
// never takes the notification of another, and a dying device ends a sleep too.
//
// # Forks
//
// Memory that a device reads must not turn copy-on-write. Kernels from 5.12 on
// copy such pages in the child; on older ones ibv_fork_init marks them
// MADV_DONTFORK, before anything else is called. Children of Go programs (os/exec)
// share the parent's memory until they exec and touch none of these pages.
package verbs
