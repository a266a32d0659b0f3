package memif

import "sync/atomic"

// totals are the counters of all ports that this process has had, as far as their
// owners have published them.
var totals struct {
	rxFrames, txFrames, rxBursts, txBursts, kicks, badDescriptors, peerLies atomic.Uint64
}

// publishEvery is how many calls of RxBurst pass until a busy port publishes what it
// counted.
const publishEvery = 256

// Totals is the sum over all ports that this process has had. A port adds to it every
// few hundred polls, before its owner sleeps, and at its end. Any goroutine.
func Totals() Stats {
	t := &totals
	return Stats{
		RxFrames: t.rxFrames.Load(), TxFrames: t.txFrames.Load(), RxBursts: t.rxBursts.Load(), TxBursts: t.txBursts.Load(),
		Kicks: t.kicks.Load(), BadDescriptors: t.badDescriptors.Load(), PeerLies: t.peerLies.Load(),
	}
}

func (p *Port) publishStats() {
	now, was := p.stats, &p.published
	if now == *was {
		return
	}
	totals.rxFrames.Add(now.RxFrames - was.RxFrames)
	totals.txFrames.Add(now.TxFrames - was.TxFrames)
	totals.rxBursts.Add(now.RxBursts - was.RxBursts)
	totals.txBursts.Add(now.TxBursts - was.TxBursts)
	totals.kicks.Add(now.Kicks - was.Kicks)
	totals.badDescriptors.Add(now.BadDescriptors - was.BadDescriptors)
	totals.peerLies.Add(now.PeerLies - was.PeerLies)
	*was = now
}
