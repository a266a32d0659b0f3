// Package afxdp is AF_XDP ports in pure Go: the receive and transmit queue of a
// network device in the program's own memory, without libdpdk.
//
// An XDP program on the device picks the frames that are for the port and leaves
// all others to the kernel, so ARP, ICMP, SSH go on as before. It stays for as
// long as its Netdev, or the process: its link is not pinned, and a killed process
// leaves nothing behind.
//
// It needs CAP_NET_ADMIN, CAP_BPF and CAP_NET_RAW (root has them), Linux 5.9 or
// later, and memory that may be locked.
//
// # Memory order
//
// Each ring has one producer and one consumer, one of which is the kernel. The
// producer writes descriptors, then stores its index; the consumer loads that
// index, then reads descriptors, and stores its own when it no longer needs the
// slots. Loads and stores of indices are sync/atomic's, which are sequentially
// consistent: each store releases what was written before, each load acquires what
// its value stands for. That is the kernel's own contract (net/xdp/xsk_queue.h),
// on amd64 and arm64 alike. The index that a side owns it also keeps in ordinary
// memory, since nobody else writes it.
package afxdp
