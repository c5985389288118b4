package validation

// The names that MQTT topics are made of: {productID}/{deviceName}/{topic}. The
// schema says the same of the objects; these are for names that come another way.

// ProductID reports whether text can be a product ID: 1 to 32 letters and digits.
func ProductID(text string) bool {
	return madeOf(text, 32, false)
}

// DeviceName reports whether text can be the name of a device: 1 to 48 letters,
// digits, ':', '_' and '-'.
func DeviceName(text string) bool {
	return madeOf(text, 48, true)
}

// TopicName reports whether text can be the last level of a device's topic: 1 to 128
// letters, digits, ':', '_' and '-' (CreateTask, publishMessageTask, topic).
func TopicName(text string) bool {
	return madeOf(text, 128, true)
}

// madeOf reports whether text is 1 to most ASCII letters and digits, or ':', '_' and
// '-' if marks is set. It is asked for each device of a task, so it is no regular
// expression.
func madeOf(text string, most int, marks bool) bool {
	if text == "" || len(text) > most {
		return false
	}
	for i := range len(text) {
		switch c := text[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case marks && (c == ':' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return true
}
