// Package roce is the RoCEv2 wire format: the transport headers of reliable
// connections, the invariant CRC, packet sequence numbers and the constants of
// acknowledgements. It allocates nothing, keeps no state and may be used on any
// goroutine.
//
// A RoCEv2 packet is IP / UDP (destination port 4791) / BTH / extension headers /
// payload / 0 to 3 bytes of pad / ICRC. "Packet" in this package's functions is
// what follows the UDP header.
//
// Sources: InfiniBand Architecture Specification vol. 1 (IBTA), chapter 9, and
// its annex A17 (RoCEv2); where they leave a choice, Linux's
// drivers/infiniband/sw/rxe.
package roce
