package namefilter

import (
	"math/rand/v2"
	"regexp"
	"testing"
)

func TestNarrow(t *testing.T) {
	tests := []struct{ filter, wantFrom, wantBelow string }{
		{`^door`, "door", "doos"},
		{`^door$`, "door", "doos"},
		{`\Adoor\z`, "door", "doos"},
		{`(?m)^door$`, "door", "doos"},
		{`^(door)-(\d+)`, "door-", "door."},
		{`^(door-1|door-2)$`, "door-", "door."},
		{`^door-1|^door-2`, "door-", "door."},
		{`^(doo)+r`, "doo", "dop"},
		{`^(doo){2,3}r`, "doo", "dop"},
		{`^z`, "z", "{"},
		{`^d.*r`, "d", "e"},
		{`(^door)`, "door", "doos"},
		{`\b^door`, "door", "doos"},
		{`^doör`, "", ""},
		{`^do\x00r`, "", ""},
		{`^$`, "", aboveNames},
		{`door`, "", aboveNames},
		{`door$`, "", aboveNames},
		{`(^a)?b`, "", aboveNames},
		{`^a|b`, "", aboveNames},
		{`^(a|b)`, "", aboveNames},
		{`(?i)^door`, "", aboveNames},
		{`^d(?i)oor`, "d", "e"},
		{`x*^door`, "", aboveNames},
		{`^(door)?s`, "", aboveNames},
		{`.*`, "", aboveNames},
	}
	for _, tt := range tests {
		if from, below := MustParse(tt.filter).Range(); from != tt.wantFrom || below != tt.wantBelow {
			t.Errorf("%s: from %q below %q, want %q and %q", tt.filter, from, below, tt.wantFrom, tt.wantBelow)
		}
	}
	if from, below := (*Filter)(nil).Range(); from != "" || below != aboveNames {
		t.Errorf("no filter: from %q below %q", from, below)
	}
}

// TestNarrowAgainstAllNames makes filters at random of what matters to the analysis and
// matches all short names.
func TestNarrowAgainstAllNames(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	const letters = "ab-"
	names := []string{""}
	for i := 0; len(names) < 120; i++ {
		for _, letter := range letters {
			names = append(names, names[i]+string(letter))
		}
	}
	names = names[1:]
	var expression func(depth int) string
	expression = func(depth int) string {
		atoms := []string{"a", "b", "-", "ab", "^", "$", `\A`, `\z`, `\b`, `\B`, ".", "[ab]", "(?i:a)", "[a]", "(?m:^)", "(?m:$)", "", "é"}
		if depth == 0 {
			return atoms[random.IntN(len(atoms))]
		}
		sub := func() string { return expression(depth - 1) }
		switch random.IntN(7) {
		case 0:
			return "(" + sub() + "|" + sub() + ")"
		case 1:
			return "(?:" + sub() + ")" + []string{"*", "+", "?", "{2}", "{1,2}", "{0,1}", "{2,}", "+?", "*?"}[random.IntN(9)]
		case 2:
			return "^" + sub()
		case 3:
			return "(" + sub() + ")"
		default:
			return sub() + sub()
		}
	}
	narrowed, matching := 0, 0
	for range 5000 {
		text := expression(3)
		filter, err := regexp.Compile(text)
		if err != nil {
			continue
		}
		from, below := MustParse(text).Range()
		if from != "" {
			narrowed++
		}
		for _, name := range names {
			if filter.MatchString(name) {
				matching++
				if name < from || name >= below {
					t.Fatalf("%s matches %q, which is not from %q below %q", text, name, from, below)
				}
			}
		}
	}
	if narrowed < 200 || matching < 1000 {
		t.Errorf("%d filters were narrowed, %d names matched: the test shows nothing", narrowed, matching)
	}
}
