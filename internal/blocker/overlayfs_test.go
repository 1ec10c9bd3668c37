package blocker

import "testing"

func TestWhereImagesGo(t *testing.T) {
	const gib = 1 << 30
	for name, c := range map[string]struct {
		room room
		want int64
	}{
		"an overlay root, and memory":        {room{"overlay", 100 * gib, 8 * gib}, 4 * gib},
		"an overlay root, and no memory":     {room{"overlay", 100 * gib, gib}, 0},
		"9p with room for copies":            {room{"9p", 100 * gib, 8 * gib}, 0},
		"9p without, and memory":             {room{"9p", 3 * gib, 8 * gib}, 4 * gib},
		"neither":                            {room{"9p", 3 * gib, gib}, 0},
		"it could not be told what there is": {room{}, 0},
	} {
		if got := c.room.tmpfs(); got != c.want {
			t.Errorf("%s: %d, not %d", name, got, c.want)
		}
	}
}
