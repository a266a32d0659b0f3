//go:build cgo && (dpdk || verbs)

package main

// native tells whether this program is the one with the C libraries.
const native = true
