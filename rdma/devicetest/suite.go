// Package devicetest is the conformance suite of rdma.Device: what the message
// protocol relies on, told by every device in the same way. A device's own tests
// call Run.
package devicetest

import (
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
)

// Setup gives the suite its devices.
type Setup struct {
	// Open makes two devices that reach each other; they may be two handles of one.
	// The suite closes both.
	Open func(t *testing.T) Pair
	// DeadPeer is how long a send may take to fail when nobody answers. Default 30 s.
	DeadPeer time.Duration
}

// Pair is two devices and what makes time pass for them.
type Pair struct {
	A, B rdma.Device
	// Now is the clock of Progress, in nanoseconds. Default: the machine's.
	Now func() int64
	// Idle is called where neither device had work; next is when the earlier one must
	// run again, 0 for never. A virtual clock advances here. Default: nothing.
	Idle func(next int64)
}

// Run runs the suite. Tests of what a device lacks, by its capabilities, skip with
// that reason; anything else is a failure.
func Run(t *testing.T, s Setup) {
	if s.DeadPeer == 0 {
		s.DeadPeer = 30 * time.Second
	}
	for _, c := range []struct {
		name string
		test func(*testing.T, *world)
	}{
		{"Attributes", testAttributes},
		{"MemoryRegions", testMemoryRegions},
		{"States", testStates},
		{"RemotesThatCannotBe", testBadRemotes},
		{"QueuePairConfigs", testQPConfigs},
		{"NumbersAreNotPredictable", testNumbers},
		{"MessageSizes", testSizes},
		{"Immediate", testImmediate},
		{"Inline", testInline},
		{"SelectiveSignalling", testSelectiveSignalling},
		{"PostLists", testPostLists},
		{"QueuesHaveADepth", testQueueDepth},
		{"PollInBursts", testPollBursts},
		{"ManyPairsOnOneQueue", testManyPairs},
		{"BothWays", testBothWays},
		{"PostsThatAreRefused", testRefusedPosts},
		{"OpcodesThatAreLacking", testLackingOpcodes},
		{"Write", testWrite},
		{"WriteImm", testWriteImm},
		{"WriteThenSend", testWriteThenSend},
		{"Read", testRead},
		{"Atomics", testAtomics},
		{"ManyReads", testManyReads},
		{"ReadsNeedLimits", testReadsNeedLimits},
		{"RemoteRights", testRemoteRights},
		{"Deregistered", testDeregistered},
		{"SharedReceives", testSharedReceives},
		{"SharedLimit", testSharedLimit},
		{"SharedFailure", testSharedFailure},
		{"SharedConfigs", testSharedConfigs},
		{"ReceiveIsLate", testReceiveIsLate},
		{"ReceiveNeverComes", testReceiveNeverComes},
		{"MessageTooLong", testMessageTooLong},
		{"PeerIsGone", testPeerIsGone},
		{"ClosedPairIsSilent", testClosedPairIsSilent},
		{"CompletionQueueCloses", testCompletionQueueCloses},
		{"DescriptorWakes", testDescriptorWakes},
		{"ClosedDevice", testClosedDevice},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, newWorld(t, s)) })
	}
}
