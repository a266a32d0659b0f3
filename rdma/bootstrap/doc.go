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
//	(sends a message on the QP)
//	Verified                            →
//
// The active side connects before Accept and the passive one before Ready, so
// neither can send to a queue pair that is not ready to receive, and no first
// message waits for a retransmission. In place of Accept the active side may
// answer Stale: it no longer holds the link that the Offer shares, and wants a
// new one. In place of any frame either side may send Refusal and close.
//
// Hello and Offer tell whether a side would rather stay on this TCP connection
// than fail. If both would, Verified ends the exchange, and in place of any frame
// either side may send Fallback; the other one repeats it, and from then on both
// speak the protocol of tcp://. If one would not, Ready ends the exchange.
//
// After the exchange each side sends Beats, so that a silent peer is one that
// stands still, until one side sends Bye and closes. The end of the TCP connection
// without a Bye means that the peer died.
//
// # Frame
//
//	0  "MLRB"
//	4  version, 16 bits, big-endian: 2
//	6  kind, 8 bits
//	7  flags, 8 bits; bit 0, in Hello and Offer: this side would stay on TCP
//	8  length of the body, 16 bits, big-endian, at most 4096
//	10 body, a JSON object
//
// The ten bytes of header, Refusal and Fallback are the same in all versions, so
// that two releases can tell each other which one they are, and stay on TCP.
package bootstrap
