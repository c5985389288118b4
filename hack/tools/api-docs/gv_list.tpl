{{- define "gvList" -}}
<!-- Made by "make api-docs" from the Go types in api/. Do not edit. -->

# API reference
{{ range . }}
{{ template "gvDetails" . }}
{{- end }}
{{- end -}}
