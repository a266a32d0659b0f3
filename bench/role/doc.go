// Package role runs the parts of a benchmark (client, proxy, broker) as
// processes of their own, each on the CPUs and in the network namespace it was
// given, and lets the parent steer them.
//
// A child reads its Spec and then Commands as JSON lines on standard input and
// writes Events as JSON lines on standard output. It ends when its input ends, so
// none outlives its parent; the kernel's parent-death signal covers a child that
// is stuck. Every step that the parent waits for has a deadline.
package role
