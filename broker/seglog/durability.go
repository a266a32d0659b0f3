package seglog

import "fmt"

// Durability says what an acknowledged append has reached.
type Durability uint8

const (
	// PageCache acknowledges when write(2) returned: it survives the death of the
	// process (SIGKILL included), not that of the kernel or the machine.
	PageCache Durability = iota + 1
	// Fsync acknowledges after fdatasync(2): it survives a power cut, as far as
	// the disk keeps its word.
	Fsync
)

func (d Durability) String() string {
	switch d {
	case PageCache:
		return "page-cache"
	case Fsync:
		return "fsync"
	}
	return fmt.Sprintf("Durability(%d)", uint8(d))
}

// ParseDurability returns the durability of that name: page-cache, fsync.
func ParseDurability(name string) (Durability, error) {
	switch name {
	case "page-cache":
		return PageCache, nil
	case "fsync":
		return Fsync, nil
	}
	return 0, fmt.Errorf("unknown durability %q: use page-cache (survives the process) or fsync (survives a power cut)", name)
}
