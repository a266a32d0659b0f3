// Package bootstrap is the TCP exchange that sets up one RDMA connection, and
// the frames that flow on it afterwards, while it is the connection's liveness
// channel. It is the control path: goroutines and the net package, a deadline on
// every step.
//
// The side that dials is the active one:
//
//	active                                    passive
//	Hello: who I am, which fabric       →
//	                                    ←     Offer: who I am, link parameters, my queue pair
//	(joins the link, connects its QP)
//	Accept: my queue pair               →
//	                                          (connects its QP)
//	                                    ←     Ready
//
// The active side connects before Accept and the passive one before Ready, so
// neither can send to a queue pair that is not ready to receive, and no first
// message waits for a retransmission. In place of Accept the active side may
// answer Stale: it no longer holds the link that the Offer shares, and wants a
// new one. In place of any frame either side may send Refusal and close.
//
// After Ready the TCP connection is silent until one side sends Bye and closes
// it. Its end without a Bye means that the peer died.
//
// # Frame
//
//	0  "MLRB"
//	4  version, 16 bits, big-endian: 1
//	6  kind, 8 bits
//	7  0
//	8  length of the body, 16 bits, big-endian, at most 4096
//	10 body, a JSON object
//
// The ten bytes of header are the same in all versions, so that two releases can
// tell each other which one they are.
package bootstrap
