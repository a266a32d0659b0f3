package softroce

import "github.com/millrace/millrace/rdma/roce"

// maxTrain is the largest payload of one UDP datagram, over IPv4, bytes.
const maxTrain = 1<<16 - 1 - 20 - 8

// trainLength is how many of frames, at least one, can go as one train: they have
// one destination, as same tells, and one length, but the last may be shorter.
func trainLength(frames []Frame, same func(a, b *Path) bool) int {
	first := frames[0].Path
	size, total := frames[0].Len, frames[0].Len
	n := 1
	for n < len(frames) && n < roce.MaxSegments {
		f := &frames[n]
		if total += f.Len; total > maxTrain || f.Len > size || f.Path != first && !same(f.Path, first) {
			break
		}
		n++
		if f.Len < size {
			break
		}
	}
	return n
}

// number makes the ICRCs of packets over IPv4 those of the identifications first,
// first+1, …; done twice, it undoes that.
func number(train []Frame, first uint16) {
	for i := range train {
		if id := first + uint16(i); id != 0 {
			f := &train[i]
			b := f.Data[f.Len-roce.ICRCLen : f.Len]
			roce.PutICRC(b, roce.GetICRC(b)^roce.IdentDelta(id, f.Len))
		}
	}
}
