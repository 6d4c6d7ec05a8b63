{{- /* What selects the nodes. */}}
{{- define "flightcache.selector" -}}
app.kubernetes.io/name: flightcache
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Labels of every object. */}}
{{- define "flightcache.labels" -}}
{{ include "flightcache.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
